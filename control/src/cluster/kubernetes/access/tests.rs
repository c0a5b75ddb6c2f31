use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::state::Sensitive;

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(future)
}

const GOOD: &str = "\
current-context: x
contexts: [{name: x, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: 'https://10.0.0.1:6443'}}]
users: [{name: u, user: {token: secret}}]
";

fn read_as(text: &str, allowed: Allowed) -> Result<Config, String> {
    run(kubeconfig(text, None, allowed)).map_err(|error| error.to_string())
}

fn refused(text: &str) -> String {
    read_as(text, Allowed::default()).expect_err("a broken kubeconfig")
}

#[test]
fn kubeconfigs_are_read() {
    let config = read_as(GOOD, Allowed::default()).unwrap();
    assert_eq!(config.cluster_url.to_string(), "https://10.0.0.1:6443/");
    assert!(!config.accept_invalid_certs);
    let more = GOOD.replace(
        "6443'",
        "6443', insecure-skip-tls-verify: true, tls-server-name: api.example, \
         proxy-url: 'http://10.0.0.9:3128'",
    );
    let config = read_as(&more, Allowed::default()).unwrap();
    assert!(config.accept_invalid_certs);
    assert_eq!(config.tls_server_name.as_deref(), Some("api.example"));
    assert_eq!(config.proxy_url.unwrap().host(), Some("10.0.0.9"));
}

#[test]
fn kubeconfigs_are_refused_with_the_field() {
    for (from, to, words) in [
        ("current-context: x", "", "current-context: is missing; name one of the contexts"),
        ("current-context: x", "current-context: y", "current-context: there is no context \"y\""),
        ("cluster: c", "cluster: d", "contexts[x].context.cluster: there is no cluster \"d\""),
        ("user: u", "user: v", "contexts[x].context.user: there is no user \"v\""),
        ("server:", "other:", "clusters[c].cluster.server: is missing; set it"),
        ("https://10", "ftp://10", "clusters[c].cluster.server: \"ftp://10.0.0.1:6443\" is no URL"),
        ("https://10", "http://10", "clusters[c].cluster.server: is http"),
        ("token: secret", "tokenFile: /x", "users[u].user.tokenFile: names a file of the node"),
        ("token: secret", "client-certificate-data: QQ==", "users[u].user.client-key-data: is mis"),
        (
            "token: secret",
            "auth-provider: {name: gcp}",
            "users[u].user.auth-provider: runs a program on this node",
        ),
        (
            "6443'",
            "6443', proxy-url: 'ftp://me:secret@a:1'",
            "clusters[c].cluster.proxy-url: is no",
        ),
        ("6443'", "6443', proxy-url: 'me:secret@a:1'", "clusters[c].cluster.proxy-url: is no URL"),
        ("6443'", "6443', proxy-url: 'http://:secret@ a'", "clusters[c].cluster.proxy-url: is no"),
        (
            "6443'",
            "6443', certificate-authority-data: QQ==",
            "clusters[c].cluster.certificate-authority-data: ",
        ),
    ] {
        let message = refused(&GOOD.replace(from, to));
        assert!(message.starts_with(words), "{words}: {message}");
        assert!(!message.contains("secret"), "{message}");
    }
    let message = refused(&GOOD.replace("token: secret", "token: [secret"));
    assert!(message.starts_with("text: is no kubeconfig ("), "{message}");
    assert!(!message.contains("secret"), "{message}");
}

#[test]
fn programs_that_want_somebody_to_ask_are_refused() {
    let with = |exec: &str| {
        let text = GOOD.replace("token: secret", &format!("exec: {{{exec}}}"));
        read_as(&text, Allowed { programs: true, files: false })
    };
    let exec = with("command: x").unwrap().auth_info.exec.unwrap();
    assert_eq!(exec.interactive_mode, Some(ExecInteractiveMode::Never));
    for (exec, words) in [
        ("args: [x]", "users[u].user.exec.command: is missing"),
        ("command: x, interactiveMode: Always", "users[u].user.exec.interactiveMode: is Always"),
    ] {
        let message = with(exec).map(drop).unwrap_err();
        assert!(message.starts_with(words), "{message}");
    }
}

#[test]
fn what_a_client_is_made_of_tells_it_apart() {
    let of = |more: &str| {
        let text = GOOD.replace("6443'", &format!("6443'{more}"));
        fingerprint(&read_as(&text, Allowed::default()).unwrap())
    };
    let all = [
        "",
        ", proxy-url: 'http://10.0.0.9:3128'",
        ", proxy-url: 'http://10.0.0.9:3129'",
        ", tls-server-name: api.example",
        ", insecure-skip-tls-verify: true",
    ];
    let different: std::collections::BTreeSet<_> = all.map(of).into();
    assert_eq!(different.len(), all.len());
    assert_eq!(of(""), of(""));
}

#[test]
fn files_are_read_beside_a_kubeconfig_file() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("token"), "t").unwrap();
    let path = folder.path().join("kubeconfig");
    fs::write(&path, GOOD.replace("token: secret", "tokenFile: token")).unwrap();
    let config = run(Access::Kubeconfig(path.clone()).load(false)).unwrap();
    let token = folder.path().join("token").display().to_string();
    assert_eq!(config.auth_info.token_file, Some(token));
    fs::remove_file(folder.path().join("token")).unwrap();
    let message = run(Access::Kubeconfig(path).load(false)).unwrap_err().to_string();
    assert!(message.contains("users[u].user.tokenFile: "), "{message}");
    assert!(message.contains("can't be read"), "{message}");
}

#[test]
fn secrets_hold_contents() {
    let name = ObjectName { namespace: "n".into(), name: "s".into() };
    let read = |data: Value| {
        run(of_secret(&name, &data, false)).map(|_| ()).map_err(|error| error.to_string())
    };
    let good = json!({"datastoreType": "a3ViZXJuZXRlcw==", "kubeconfig": "e30="});
    let message = read(good.clone()).unwrap_err();
    assert!(message.starts_with("Secret n/s: key kubeconfig: current-context"), "{message}");
    for (key, value, words) in [
        ("datastoreType", json!("ZXRjZHYz"), "key datastoreType: is etcdv3, which Tieline does"),
        ("datastoreType", json!("IA=="), "key datastoreType: is missing"),
        ("kubeconfig", json!(""), "key kubeconfig: is missing"),
        ("kubeconfig", json!("/w=="), "key kubeconfig: is no text"),
        ("kubeconfig", json!("%"), "holds no valid base64"),
    ] {
        let mut data = good.clone();
        data[key] = value;
        let message = read(data).unwrap_err();
        assert!(message.starts_with("Secret n/s: "), "{message}");
        assert!(message.contains(words), "{words}: {message}");
    }
    assert!(read(Value::Null).unwrap_err().contains("key datastoreType: is missing"));
}

#[test]
fn fields_of_a_configuration_are_enough() {
    let inline = InlineAccess {
        endpoint: Some("https://api.example:6443".into()),
        token: Some(Sensitive("secret\n".into())),
        insecure: true,
        ..InlineAccess::default()
    };
    let access = Access::Inline(Arc::new(inline.clone()));
    let config = run(access.load(false)).unwrap();
    assert_eq!(config.cluster_url.host(), Some("api.example"));
    assert!(!format!("{access:?} {config:?}").contains("secret"));
    // A kubeconfig goes before them.
    let more = InlineAccess { kubeconfig_inline: Some(Sensitive(GOOD.into())), ..inline.clone() };
    let config = run(Access::Inline(Arc::new(more)).load(false)).unwrap();
    assert_eq!(config.cluster_url.host(), Some("10.0.0.1"));
    let missing = InlineAccess { ca_file: Some("/nowhere/ca".into()), ..inline };
    let message = run(Access::Inline(Arc::new(missing)).load(false)).unwrap_err().to_string();
    assert!(message.starts_with("spec.k8sCAFile: /nowhere/ca: can't be read ("), "{message}");
    let nothing = Access::Inline(Arc::default());
    let message = run(nothing.load(false)).unwrap_err().to_string();
    assert!(message.starts_with("spec.k8sAPIEndpoint: is missing"), "{message}");
}
