use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::*;
use crate::cluster::kubernetes::follow::{Target, Teller, follow};
use crate::cluster::kubernetes::gathered::Step;
use crate::cluster::kubernetes::shape::Shape;

#[test]
fn a_server_starts_until_its_hooks_are_done() {
    assert!(is_starting(&unready("poststarthook/start-apiextensions-controllers")));
    assert!(is_starting(&unready("autoregister-completion")));
    assert!(!is_starting(&unready("etcd-readiness")));
    assert!(!is_starting("[+]poststarthook/rbac/bootstrap-roles ok\n"));
}

/// What `/readyz` says when one of its checks fails.
fn unready(failing: &str) -> String {
    format!("[+]ping ok\n[-]{failing} failed: reason withheld\n[+]shutdown ok\n")
}

/// A server that answers its requests, counted from 0, with a status and a text.
async fn server(answer: impl Fn(usize, &str) -> (u16, String) + Send + 'static) -> Api {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        for count in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            let request = String::from_utf8(request).unwrap();
            let (status, text) = answer(count, request.split(' ').nth(1).unwrap());
            let length = text.len();
            let head = format!("HTTP/1.1 {status} S\r\ncontent-length: {length}\r\n");
            let answer = format!("{head}connection: close\r\n\r\n{text}");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    Api::new(Config::new(url.parse().unwrap()), Duration::from_secs(5)).await.unwrap()
}

/// The answers one after the other, the last of them for good.
async fn after_each_other(answers: &'static [(u16, &str)]) -> Api {
    server(move |count, path| {
        assert_eq!(path, "/readyz");
        let (status, text) = answers[count.min(answers.len() - 1)];
        (status, text.to_owned())
    })
    .await
}

#[tokio::test]
async fn a_server_that_knows_no_roles_yet_has_not_settled() {
    const STARTING: &str = "[-]poststarthook/rbac/bootstrap-roles failed: reason withheld\n";
    let starts = after_each_other(&[(403, "forbidden"), (500, STARTING)]);
    let failure = starts.await.settled().await.unwrap_err();
    assert!(matches!(failure.cause, Cause::Starting), "{failure}");
    let answers = &[(403, "forbidden"), (403, "forbidden"), (200, "ok"), (418, "asked again")];
    assert!(after_each_other(answers).await.settled().await.is_ok());
}

/// Then it can't be known, and all else goes on.
#[tokio::test]
async fn who_may_never_ask_does_not_wait_for_ever() {
    let api = after_each_other(&[(403, "forbidden")]).await;
    assert!(api.settled().await.is_ok());
    assert!(api.readyz_forbidden.load(Relaxed));
    // Once is enough.
    tokio::time::timeout(ROLES / 2, api.clone().settled()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_starting_server_forbids_nothing() {
    let list = r#"{"metadata": {"resourceVersion": "7"}, "items": []}"#;
    let api = server(move |count, path| match (count, path) {
        (0 | 1, _) => (403, "forbidden".to_owned()),
        (2, "/readyz") => (200, "ok".to_owned()),
        (3, path) if path.starts_with("/apis/example.org/v1/pools?limit") => (200, list.to_owned()),
        // The watch ends the test.
        (4, path) if path.contains("watch") => (401, String::new()),
        other => panic!("{other:?}"),
    })
    .await;
    let target = Target {
        path: "/apis/example.org/v1/pools".to_owned(),
        fields: String::new(),
        resource: "pools.example.org".to_owned(),
        shape: &Shape::All,
    };
    let (told, mut heard) = mpsc::channel(8);
    let teller = Teller { key: (), told };
    follow(api, target, None, Arc::default(), Some, teller).await;
    let mut steps = Vec::new();
    while let Some(((), step)) = heard.recv().await {
        steps.push(step);
    }
    assert!(steps.contains(&Step::Listed("7".to_owned())), "{steps:?}");
    assert!(!steps.iter().any(|step| matches!(step, Step::Forbidden(_))), "{steps:?}");
}
