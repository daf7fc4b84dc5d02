//! The subset of HTTP/1.1 that health checks and `curl` need.

use std::{future, io, sync::atomic::Ordering};

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};

use super::{Readiness, Shared};

/// Longest request head, bytes; requests with longer heads are refused.
const MAX_HEAD: u64 = 64 * 1024;

/// The readiness response of kube-apiserver while it shuts down.
const TERMINATING: &str =
    "[+]ping ok\n[+]etcd ok\n[-]shutdown failed: reason withheld\nreadyz check failed\n";

/// Answers requests until the client closes the connection or asks to close it. Readiness is only answered to a client
/// that is `authenticated`.
pub(super) async fn serve<S>(stream: S, shared: &Shared, authenticated: bool) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut stream = BufReader::new(stream);
    while let Some(request) = read_request(&mut stream).await? {
        let answer = if matches!(request.path(), "/readyz" | "/healthz" | "/livez") {
            shared.checks.fetch_add(1, Ordering::Relaxed);
            let readiness = shared.settings().readiness;
            match readiness {
                Readiness::Status(_) | Readiness::Terminating if !authenticated => {
                    response(401, "Unauthorized")
                }
                Readiness::Status(200) => response(200, "ok"),
                Readiness::Status(status) => response(status, "not ok"),
                Readiness::Terminating => response(500, TERMINATING),
                Readiness::Close => return Ok(()),
                Readiness::Hang => future::pending().await,
            }
        } else {
            shared.requests.fetch_add(1, Ordering::Relaxed);
            response(200, &format!("{}\n", shared.name))
        };
        stream.write_all(answer.as_bytes()).await?;
        stream.flush().await?;
        if request.close {
            break;
        }
    }
    stream.shutdown().await
}

struct Request {
    line: String,
    close: bool,
}

impl Request {
    /// The target without its query.
    fn path(&self) -> &str {
        let target = self.line.split(' ').nth(1).unwrap_or_default();
        target.split('?').next().unwrap_or_default()
    }
}

/// The next request, its body skipped; `None` at the end of the stream.
async fn read_request<S>(stream: &mut BufReader<S>) -> io::Result<Option<Request>>
where
    S: AsyncRead + Unpin,
{
    let mut head = stream.take(MAX_HEAD);
    let mut line = String::new();
    if head.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let (mut close, mut body) = (line.trim_end().ends_with("HTTP/1.0"), 0);
    loop {
        let mut header = String::new();
        if head.read_line(&mut header).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let Some((name, value)) = header.split_once(':') else { break };
        if name.eq_ignore_ascii_case("connection") {
            close = value.trim().eq_ignore_ascii_case("close");
        }
        if name.eq_ignore_ascii_case("content-length") {
            body = value.trim().parse().map_err(io::Error::other)?;
        }
    }
    tokio::io::copy(&mut stream.take(body), &mut tokio::io::sink()).await?;
    Ok(Some(Request { line, close }))
}

fn response(status: u16, body: &str) -> String {
    format!("HTTP/1.1 {status} -\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}
