use super::*;

fn of(error: impl Into<Box<dyn Error + Send + Sync>>) -> Cause {
    Cause::of_error(&kube::Error::Service(error.into()), Duration::from_secs(2))
}

#[test]
fn errors_are_known_however_deep_they_are() {
    let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
    assert_eq!(of(io::Error::other(io::Error::other(refused))), Cause::Refused);
    let untrusted = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
    let wrapped = io::Error::new(io::ErrorKind::InvalidData, untrusted);
    assert_eq!(of(io::Error::other(wrapped)), Cause::Untrusted);
    let alert = rustls::Error::AlertReceived(AlertDescription::CertificateRequired);
    assert!(matches!(of(io::Error::other(alert)), Cause::ClientCertificate(_)));
    let expired = rustls::Error::InvalidCertificate(CertificateError::Expired);
    assert!(matches!(of(io::Error::other(expired)), Cause::OutOfDate(_)));
    assert!(matches!(of(io::Error::from(io::ErrorKind::UnexpectedEof)), Cause::BrokenOff(_)));
    assert!(matches!(of("what?"), Cause::Other(text) if text.contains("what?")));
}

#[test]
fn statuses_say_what_they_mean() {
    let status = || Status { code: 0, message: " why ".into(), reason: String::new() };
    let of = |code| Cause::of_status(code, status(), Some(Duration::from_secs(3)));
    assert_eq!(of(401), Cause::Unauthorized("why".into()));
    assert_eq!(of(403), Cause::Forbidden("why".into()));
    assert_eq!(of(404), Cause::NotFound);
    assert_eq!(of(410), Cause::Gone);
    assert_eq!(of(429).retry_after(), Some(Duration::from_secs(3)));
    assert_eq!(of(503).retry_after(), Some(Duration::from_secs(3)));
    assert!(!of(401).is_of_one_resource());
    assert!([403, 404, 410, 429, 500].iter().all(|code| of(*code).is_of_one_resource()));
    let page = Status { message: "x".repeat(10_000), ..Status::default() };
    assert!(Cause::of_status(502, page, None).to_string().len() < 500);
    let failure = Failure { server: "https://a:1".into(), cause: of(500) };
    assert_eq!(
        failure.to_string(),
        "https://a:1 answers with an error (500: why); see the API server's log"
    );
}
