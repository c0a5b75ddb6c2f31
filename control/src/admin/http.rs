//! HTTP for Prometheus and the kubelet: `/metrics`, `/healthz`, `/readyz`.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tracing::debug;

use super::status::Status;
use super::{Desk, Request as Question, Response as Answer, metrics};

/// How long a client may take to say what it wants.
const HEADER_PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// Listens at `address` and serves for as long as the runtime runs.
pub async fn serve(address: SocketAddr, desk: Desk) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(converse(stream, desk.clone()));
                }
                Err(error) => {
                    debug!(%error, "no metrics connection accepted");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    });
    Ok(())
}

async fn converse(stream: TcpStream, desk: Desk) {
    let service = service_fn(move |request| {
        let desk = desk.clone();
        async move { Ok::<_, Infallible>(respond(&request, &desk).await) }
    });
    let ended = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_PATIENCE)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = ended {
        debug!(%error, "a metrics connection ended early");
    }
}

async fn respond(request: &Request<Incoming>, desk: &Desk) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is served\n");
    }
    match request.uri().path() {
        // The loop answers: that is what health means here.
        "/healthz" => match desk.ask(Question::Ready).await {
            Answer::Answer(_) => plain(StatusCode::OK, "ok\n"),
            Answer::Error(reason) => plain(StatusCode::SERVICE_UNAVAILABLE, &reason),
        },
        "/readyz" => match desk.ask(Question::Ready).await {
            Answer::Answer(ready) if ready == true => plain(StatusCode::OK, "ready\n"),
            Answer::Answer(_) => {
                plain(StatusCode::SERVICE_UNAVAILABLE, "not ready; see `tieline status`\n")
            }
            Answer::Error(reason) => plain(StatusCode::SERVICE_UNAVAILABLE, &reason),
        },
        "/metrics" => match status(desk).await {
            Ok(status) => {
                let mut response = plain(StatusCode::OK, &metrics::render(&status));
                response.headers_mut().insert(CONTENT_TYPE, metrics::CONTENT_TYPE_VALUE);
                response
            }
            Err(reason) => plain(StatusCode::SERVICE_UNAVAILABLE, &reason),
        },
        _ => plain(StatusCode::NOT_FOUND, "served here: /metrics, /healthz, /readyz\n"),
    }
}

async fn status(desk: &Desk) -> Result<Status, String> {
    match desk.ask(Question::Status).await {
        Answer::Answer(value) => serde_json::from_value(value).map_err(|error| error.to_string()),
        Answer::Error(reason) => Err(reason),
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text.to_owned())));
    *response.status_mut() = status;
    response
}
