//! An HTTP server that can also break off, and say what is not HTTP.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use http_body_util::{BodyExt, Full};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use vbs::server::{Request, Response};

/// What a client gets.
pub enum Answer {
    Http(Response),
    /// The connection ends.
    Nothing,
    /// Bytes, and then the connection ends.
    Noise,
}

/// Serves until the runtime ends.
pub async fn serve<F>(listener: TcpListener, answer: impl Fn(Request) -> F + Clone + Send + Sync + 'static)
where
    F: Future<Output = Answer> + Send + 'static,
{
    while let Ok((stream, peer)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let noise = Arc::new(AtomicBool::new(false));
        let wire = TokioIo::new(Wire { stream, noise: Arc::clone(&noise) });
        let answer = answer.clone();
        let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            let (answer, noise) = (answer.clone(), Arc::clone(&noise));
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
                let (method, uri, headers) = (parts.method, parts.uri, parts.headers);
                match answer(Request { method, uri, headers, body, peer, id: String::new() }).await {
                    Answer::Http(said) => {
                        let mut response = hyper::Response::new(Full::new(said.body));
                        (*response.status_mut(), *response.headers_mut()) = (said.status, said.headers);
                        Ok(response)
                    }
                    Answer::Nothing => Err(io::Error::other("the connection is to break")),
                    Answer::Noise => {
                        noise.store(true, Ordering::Relaxed);
                        Ok(hyper::Response::new(Full::default()))
                    }
                }
            }
        });
        tokio::spawn(async move {
            // How it ends is the client's to find out.
            let _ = http1::Builder::new().serve_connection(wire, service).await;
        });
    }
}

/// A connection on which everything that is written becomes noise once it is told so.
struct Wire {
    stream: TcpStream,
    noise: Arc<AtomicBool>,
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.noise.load(Ordering::Relaxed) {
            let noise: Vec<u8> = bytes.iter().map(|byte| !byte).collect();
            return Pin::new(&mut self.stream).poll_write(cx, &noise);
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
