use kube::config::AuthInfo;

use super::*;

const LONG: Duration = Duration::from_secs(60);

fn shell(script: &str) -> ExecConfig {
    ExecConfig {
        api_version: Some("client.authentication.k8s.io/v1".into()),
        command: Some("/bin/sh".into()),
        args: Some(vec!["-c".into(), script.into()]),
        env: Some(vec![
            [("name", "SECRET"), ("value", "hush")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
        ]),
        drop_env: None,
        install_hint: None,
        interactive_mode: None,
        provide_cluster_info: false,
        cluster: None,
        other: Default::default(),
    }
}

fn run_with(exec: ExecConfig, within: Duration) -> Result<(Config, Option<Instant>), String> {
    let mut config = Config::new("https://10.0.0.1:6443".parse().unwrap());
    config.auth_info = AuthInfo { exec: Some(exec), ..AuthInfo::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(log_in(config, within)).map_err(|error| error.to_string())
}

fn failing(script: &str) -> String {
    let message = run_with(shell(script), LONG).map(drop).expect_err(script);
    assert!(message.starts_with("user.exec: /bin/sh "), "{message}");
    // Neither arguments nor environment nor output are told.
    assert!(!message.contains("hush"), "{message}");
    message
}

fn shown(user: &AuthInfo) -> serde_json::Value {
    serde_json::to_value(user).unwrap()
}

#[test]
fn what_is_printed_is_used() {
    let script = r#"test "$SECRET" = hush && echo "$KUBERNETES_EXEC_INFO" | grep -q '"interactive":false' &&
        echo '{"status": {"token": "t", "expirationTimestamp": "2100-01-01T00:00:00Z"}}'"#;
    let (config, renewal) = run_with(shell(script), LONG).unwrap();
    assert!(config.auth_info.exec.is_none());
    assert_eq!(shown(&config.auth_info)["token"], "t");
    assert!(renewal.unwrap() > Instant::now() + LONG);
    // YAML is fine, and so is a certificate.
    let script = "printf 'status:\n  clientCertificateData: c\n  clientKeyData: k\n'";
    let (config, renewal) = run_with(shell(script), LONG).unwrap();
    let user = shown(&config.auth_info);
    assert_eq!(
        (&user["client-certificate-data"], &user["client-key-data"]),
        (&json!("Yw=="), &json!("aw=="))
    );
    assert_eq!(renewal, None);
}

#[test]
fn what_fails_is_told_without_secrets() {
    for (script, words) in [
        ("echo hush; echo no such account >&2; exit 3", "(exit status: 3) and says: no such acc"),
        ("echo hush; exit 1", "says: nothing on standard error"),
        ("echo hush", "prints 5 bytes that are no ExecCredential"),
        ("echo '{\"status\": \"hush\"}'", "bytes that are no ExecCredential"),
        ("echo '{\"status\": {\"token\": [\"hush\"]}}'", "bytes that are no ExecCredential"),
        ("echo '{\"status\": {}}'", "without a token or a certificate"),
        ("echo '{\"status\": {\"clientKeyData\": \"hush\"}}'", "prints only one of client"),
        (
            "echo '{\"status\": {\"token\": \"hush\", \"expirationTimestamp\": \"soon\"}}'",
            "no time of RFC 3339",
        ),
        (
            "echo '{\"status\": {\"token\": \"hush\", \
             \"expirationTimestamp\": \"2020-01-01T00:00:00Z\"}}'",
            "that have expired (2020-01-01T00:00:00Z)",
        ),
        ("head -c 1100000 /dev/zero", "prints more than 1048576 bytes"),
    ] {
        let message = failing(script);
        assert!(message.contains(words), "{words}: {message}");
    }
    let missing = ExecConfig {
        command: Some("/nowhere/plugin".into()),
        install_hint: Some("ask\nthe admin".into()),
        ..shell("")
    };
    let message = run_with(missing, LONG).map(drop).unwrap_err();
    assert!(message.starts_with("user.exec: /nowhere/plugin can't be run: "), "{message}");
    assert!(message.ends_with("(ask the admin)"), "{message}");
}

#[test]
fn one_that_hangs_is_killed_with_all_that_it_started() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("pid").display().to_string();
    // Whether it waits for that itself or not.
    for then in ["wait", "exit"] {
        let script = format!("sleep 1000 & echo $! > {path}; {then}");
        let message = run_with(shell(&script), Duration::from_secs(1)).map(drop).unwrap_err();
        assert!(message.contains("has not ended for 1 s and is killed"), "{message}");
        ends(&std::fs::read_to_string(&path).unwrap());
    }
}

fn ends(started: &str) {
    let begun = std::time::Instant::now();
    // A zombie that nobody waits for has no command line.
    let running = || {
        let line = std::fs::read(format!("/proc/{}/cmdline", started.trim()));
        line.is_ok_and(|line| !line.is_empty())
    };
    while running() {
        assert!(begun.elapsed() < LONG, "{started} still runs");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn credentials_are_had_anew_before_they_expire() {
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let renewal = |expiry: &str| {
        let status = Status { expiration_timestamp: Some(expiry.into()), ..Status::default() };
        status.renewal(now).map(|after| after.map(|after| after.as_secs()))
    };
    assert_eq!(renewal("2026-01-01T01:00:00Z"), Ok(Some(3540)));
    assert_eq!(renewal("2026-01-01T02:00:00+01:00"), Ok(Some(3540)));
    assert_eq!(renewal("2026-01-01T00:01:00Z"), Ok(Some(30)));
    assert_eq!(renewal("2026-01-01T00:00:01Z"), Ok(Some(1)));
    assert!(renewal("2025-12-31T23:59:59Z").is_err());
    assert_eq!(Status::default().renewal(now), Ok(None));
}
