use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Instant;

use super::*;
use crate::http::View;
use crate::status::schema::{Serving, Status};

fn server() -> Server {
    let status = || Status {
        serving: Serving { serving: true, ..Serving::default() },
        version: "7".to_owned(),
        ..Status::default()
    };
    let ask = move |request: ViewRequest| {
        let _ = request.reply.send(View { status: status(), ..View::default() });
    };
    Server::start(([127, 0, 0, 1], 0).into(), ask).unwrap()
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Sends a request and returns the whole answer.
fn exchange(server: &Server, request: &str) -> String {
    let mut stream = connect(server);
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

const GET: &str = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

#[test]
fn requests_are_answered_with_headers() {
    let server = server();
    let answer = exchange(&server, GET);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nok\n"), "{answer}");
    let answer = exchange(&server, &GET.replace("/healthz", "/metrics?x=y"));
    assert!(answer.contains("cplb_build_info{version=\"7\"} 1\n"), "{answer}");
    let head = exchange(&server, &GET.replace("GET", "HEAD"));
    assert!(head.contains("content-length: 3\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    let post = "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\nx";
    let answer = exchange(&server, post);
    assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("allow: GET, HEAD\r\n"), "{answer}");
}

#[test]
fn malformed_and_oversized_requests_end_with_an_error() {
    let server = server();
    for request in ["\r\n\r\nnonsense\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "\u{16}\u{3}\u{1}\r\n\r\n"] {
        let answer = exchange(&server, request);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{request:?}: {answer}");
    }
    let long = format!("GET /healthz HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(2 * MAX_HEAD));
    let mut stream = connect(&server);
    // The server may close before all is written.
    let _ = stream.write_all(long.as_bytes());
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    assert!(exchange(&server, GET).starts_with("HTTP/1.1 200 "));
}

/// Each of them would keep its place for [`HEAD_TIMEOUT`].
#[test]
fn slow_clients_do_not_keep_others_out() {
    let server = server();
    let slow: Vec<TcpStream> = (0..3 * MAX_CONNECTIONS)
        .map(|_| {
            let mut stream = connect(&server);
            stream.write_all(b"GET /metr").unwrap();
            stream
        })
        .collect();
    let began = Instant::now();
    assert!(exchange(&server, GET).starts_with("HTTP/1.1 200 "));
    assert!(began.elapsed() < HEAD_TIMEOUT / 2, "{:?}", began.elapsed());
    // The oldest ones have made room, before their time was over.
    let mut buffer = [0; 1];
    assert!(matches!((&slow[0]).read(&mut buffer), Ok(0) | Err(_)));
    assert!(began.elapsed() < HEAD_TIMEOUT / 2, "{:?}", began.elapsed());
}

#[test]
fn a_stopped_server_frees_its_port_and_ends_its_connections() {
    let first = server();
    let address = first.address();
    let mut open = connect(&first);
    let taken = Server::start(address, drop).map(|_| ());
    assert_eq!(taken.unwrap_err().kind(), io::ErrorKind::AddrInUse);
    assert!(!first.has_ended());
    drop(first);
    let mut buffer = [0; 1];
    assert!(matches!(open.read(&mut buffer), Ok(0) | Err(_)));
    let _ = open.shutdown(Shutdown::Both);
    assert_eq!(Server::start(address, drop).unwrap().address(), address);
}
