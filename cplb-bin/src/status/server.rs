//! Answers each connection on the status socket with one JSON document and closes it.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::schema::Status;

/// The connection of a slower reader is closed.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// Writes `status` to a reader, within [`WRITE_TIMEOUT`].
pub(crate) async fn answer(mut stream: UnixStream, status: Status) {
    let Ok(mut text) = serde_json::to_vec(&status) else { return };
    text.push(b'\n');
    let write = async {
        stream.write_all(&text).await?;
        stream.shutdown().await
    };
    if !matches!(tokio::time::timeout(WRITE_TIMEOUT, write).await, Ok(Ok(()))) {
        tracing::debug!("the status was not read completely");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::socket::{BindError, LocalSocket};
    use crate::status::client;

    #[tokio::test]
    async fn a_reader_gets_the_document_and_the_file_goes_with_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/cplb.sock");
        let socket = LocalSocket::bind(&path, None).unwrap();
        assert!(matches!(LocalSocket::bind(&path, None), Err(BindError::InUse(_))));
        let serve = async {
            // The refused bind above has left one connection without a reader.
            for _ in 0..2 {
                answer(socket.accept().await, Status { schema: 1, pid: 7, ..Status::default() }).await;
            }
        };
        let reader = {
            let path = path.clone();
            tokio::task::spawn_blocking(move || client::fetch(&path))
        };
        serve.await;
        assert_eq!(reader.await.unwrap().unwrap().pid, 7);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        drop(socket);
        assert!(!path.exists());
    }
}
