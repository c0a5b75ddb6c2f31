//! The ways to a remote cluster that its kubeconfig may name: a proxy, names and
//! certificates, programs that print credentials.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use serde_json::json;
use tieline::cluster::kubernetes::Options;
use tieline::federation::RemoteState;
use tieline_lab::Lab;
use tieline_tests::kube::{ApiCluster, program};

use crate::faults::{ACCOUNT, BY_SECRET, Pair};
use crate::federation::{Joined, Told};
use crate::follower::options;
use crate::proxy::{Mode, Proxy};

/// Where the remote's API server is (RFC 5737). There is no way to it but the
/// proxy.
const SERVER: &str = "192.0.2.2:6443";

/// An authority of clients' certificates.
struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "clients");
        let certificate = params.self_signed(&key).unwrap().pem();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// A certificate and its key, of the service account that the remote grants
    /// its rights to.
    fn client(&self) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        let name = format!("system:serviceaccount:kube-system:{ACCOUNT}");
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// Two clusters that are apart but for the proxy, joined.
struct World {
    pair: Pair,
    proxy: Proxy,
    joined: Joined,
    authority: Authority,
    /// A kubeconfig as the guide has it; and its authority, token and server.
    good: String,
    ca: String,
    token: String,
}

impl World {
    fn new() -> Option<Self> {
        let program = program()?;
        let lab = Lab::new("kube-ways").unwrap();
        let authority = Authority::new();
        let server: SocketAddr = SERVER.parse().unwrap();
        let (local, remote) = std::thread::scope(|scope| {
            let local = scope.spawn(|| ApiCluster::alone(&lab, program, "a"));
            let netns = lab.netns("b-api").unwrap();
            netns.ip([format!("address add {}/32 dev lo", server.ip())]).unwrap();
            let clients = Some(authority.certificate.as_str());
            let remote = ApiCluster::start_with(&lab, program, "b", netns, server.ip(), clients);
            (local.join().unwrap(), remote)
        });
        let pair = Pair::of(lab, local, remote);
        let proxy = Proxy::new(pair.local.netns(), pair.remote.netns(), server);
        let joined = Joined::with(&pair.local, Options { exec_plugins: true, ..options() });
        let good = pair.kubeconfig();
        let line = |start: &str| {
            let line = good.lines().find_map(|line| line.trim().strip_prefix(start));
            line.unwrap().trim().to_owned()
        };
        let (ca, token) = (line("certificate-authority-data:"), line("token:"));
        pair.rcc("b", BY_SECRET);
        Some(Self { pair, proxy, joined, authority, good, ca, token })
    }

    /// A kubeconfig by way of the proxy, with these fields of the cluster and of
    /// the user.
    fn kubeconfig(&self, cluster: &str, user: &str) -> String {
        let proxy = self.proxy.address();
        let start = if cluster.contains("proxy-url") {
            String::new()
        } else {
            format!("proxy-url: 'http://{proxy}', ")
        };
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: x\n\
             contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{{start}{cluster}}}}}]\n\
             users: [{{name: u, user: {{{user}}}}}]\n"
        )
    }

    fn server(&self) -> String {
        format!("server: 'https://{SERVER}', certificate-authority-data: {}", self.ca)
    }

    fn by_token(&self) -> String {
        format!("token: {}", self.token)
    }

    /// The Secret says now, of the way there.
    fn write(&self, cluster: &str, user: &str) {
        let base64 = |text: &str| json!(ByteString(text.as_bytes().to_vec()));
        let data = json!({
            "datastoreType": base64("kubernetes"),
            "kubeconfig": base64(&self.kubeconfig(cluster, user)),
        });
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "b", "namespace": "remotes"}, "data": data,
        });
        self.pair.local.apply(&secret.to_string());
    }

    fn says(&self, words: &str) {
        let told = self.joined.until(words, |told| told.error("b").contains(words));
        assert_eq!(told.pods("b"), Some(1), "what was known stays: {words}");
        assert_eq!(told.state("b"), Some(RemoteState::Stale), "{words}");
        // Tokens and passwords are for nobody to read.
        let error = told.error("b");
        let mut secrets = ["hush", &self.token].into_iter();
        assert!(secrets.all(|secret| !error.contains(secret)), "{error}");
    }

    fn is_in_sync(&self, what: &str) -> Told {
        self.joined.until(what, |told| {
            told.state("b") == Some(RemoteState::InSync)
                && told.pods("b") == Some(1)
                && told.error("b").is_empty()
        })
    }
}

#[test]
fn every_way_that_a_kubeconfig_names() {
    let Some(world) = World::new() else { return };
    by_proxy(&world);
    by_name_and_certificate(&world);
    by_program(&world);
}

fn by_proxy(world: &World) {
    let World { pair, proxy, joined, .. } = world;
    // There is no other way.
    pair.secret("kubernetes", &world.good);
    joined.until("no way", |told| told.error("b").contains("can't be reached ("));
    world.write(&world.server(), &world.by_token());
    world.is_in_sync("by the proxy");
    let asked = proxy.asked();
    assert!(!asked.is_empty() && asked.iter().all(|server| server == SERVER), "{asked:?}");

    let named = format!("https://{SERVER} (through the proxy http://{})", proxy.address());
    let says = |words: &str| world.says(&format!("Secret remotes/b: {named} {words}"));
    proxy.turn(Mode::Refuse);
    says("is not reached: the proxy does not connect to the API server; see its log");
    proxy.turn(Mode::Ask);
    says("is not reached: the proxy asks for credentials (407");
    let server = world.server();
    let with = |way: &str| format!("proxy-url: '{way}{}', {server}", proxy.address());
    world.write(&with("http://me:hush@"), &world.by_token());
    says("is not reached: the proxy asks for credentials (407");
    world.write(&with("http://me:hush%40@"), &world.by_token());
    world.is_in_sync("with the password");
    proxy.turn(Mode::Refuse);
    says("is not reached: the proxy does not connect");
    proxy.asked();
    world.write(&with("socks5://"), &world.by_token());
    let named =
        format!("(through the proxy socks5://{}) is not reached: the proxy", proxy.address());
    world.says(&format!("{named} refuses ("));
    proxy.turn(Mode::Pass);
    world.is_in_sync("by SOCKS");
    let asked = proxy.asked();
    assert!(!asked.is_empty() && asked.iter().all(|server| server == SERVER), "{asked:?}");

    let other = Proxy::new(pair.local.netns(), pair.remote.netns(), SERVER.parse().unwrap());
    let address = other.address();
    other.turn(Mode::Down);
    // Until it has let go of its port.
    let free = || pair.local.netns().run(|| std::net::TcpStream::connect(address)).unwrap();
    while free().is_ok() {}
    world.write(&format!("proxy-url: 'http://{address}', {server}"), &world.by_token());
    world.says(&format!("(through the proxy http://{address}) is not reached: the proxy refuses"));
    world.says("refuses connections; check that it runs, and `proxy-url`");
    world.write(&format!("proxy-url: 'socks5://{address}', {server}"), &world.by_token());
    world.says("the proxy can't be reached; check that it runs, and `proxy-url`");
    world.write(&format!("proxy-url: 'ftp://me:hush@{address}', {server}"), &world.by_token());
    world.says("cluster.proxy-url: is no URL of a proxy");
}

fn by_name_and_certificate(world: &World) {
    // The proxy knows the name; the certificate does not.
    let server = world.server().replace(SERVER, "api.example:6443");
    world.write(&server, &world.by_token());
    world.says("has a certificate for another name (");
    world.write(&format!("{server}, tls-server-name: 192.0.2.2"), &world.by_token());
    world.is_in_sync("by another name");
    assert!(world.proxy.asked().contains(&"api.example:6443".to_owned()));

    let server = format!("server: 'https://{SERVER}'");
    world.write(&server, &world.by_token());
    world.says("has a certificate of an authority that is not trusted");
    world.write(&format!("{server}, insecure-skip-tls-verify: true"), &world.by_token());
    world.is_in_sync("without a look at the certificate");

    let user = |(certificate, key): (String, String)| {
        let data = |text: String| ByteString(text.into_bytes());
        let [certificate, key] = [certificate, key].map(|text| json!(data(text)));
        format!("client-certificate-data: {certificate}, client-key-data: {key}")
    };
    world.write(&world.server(), &user(Authority::new().client()));
    world.says("refuses the credentials (401");
    world.write(&world.server(), &user(world.authority.client()));
    world.is_in_sync("by a certificate");

    // Files, where the one who writes the object names one of the node's.
    let folder = world.pair.local.dir().join("by-file");
    fs::create_dir_all(&folder).unwrap();
    let by_file = |name: &str, user: &str| {
        let path = folder.join(name);
        fs::write(&path, world.kubeconfig(&world.server(), user)).unwrap();
        world.pair.local.kubectl(&["delete", "remoteclusterconfigurations", "b"]);
        world.joined.until("withdrawn", |told| told.world.remotes.is_empty());
        let spec = format!("{{datastoreType: kubernetes, kubeconfig: '{}'}}", path.display());
        world.pair.rcc("b", &spec);
    };
    by_file("by-token", "tokenFile: token");
    world.joined.until("no file", |told| told.error("b").contains("user.tokenFile: "));
    fs::write(folder.join("token"), &world.token).unwrap();
    world.is_in_sync("by a token in a file");
    let (certificate, key) = world.authority.client();
    fs::write(folder.join("client.crt"), certificate).unwrap();
    fs::write(folder.join("client.key"), key).unwrap();
    by_file("by-certificate", "client-certificate: client.crt, client-key: client.key");
    world.is_in_sync("by a certificate in files");
    world.pair.rcc("b", BY_SECRET);
}

/// A program that does as its folder says, and counts its runs.
struct Plugin(PathBuf);

impl Plugin {
    fn new(folder: PathBuf) -> Self {
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    /// What it does from now on.
    fn does(&self, script: &str) {
        let runs = self.0.join("runs").display().to_string();
        fs::write(self.0.join("new"), format!("echo >> {runs}\n{script}\n")).unwrap();
        fs::rename(self.0.join("new"), self.0.join("plugin.sh")).unwrap();
    }

    fn prints(&self, status: &serde_json::Value) {
        let printed = json!({
            "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
            "status": status,
        });
        fs::write(self.0.join("printed"), printed.to_string()).unwrap();
        self.does(&format!("cat {}", self.0.join("printed").display()));
    }

    fn runs(&self) -> usize {
        fs::read_to_string(self.0.join("runs")).map_or(0, |runs| runs.lines().count())
    }

    fn user(&self) -> String {
        format!(
            "exec: {{apiVersion: client.authentication.k8s.io/v1, command: /bin/sh, \
             args: ['{}', hush], env: [{{name: WORD, value: hush}}]}}",
            self.0.join("plugin.sh").display()
        )
    }
}

fn by_program(world: &World) {
    let plugin = Plugin::new(world.pair.local.dir().join("plugin"));
    plugin.does("echo hush; echo no such account >&2; exit 3");
    world.write(&world.server(), &plugin.user());
    let failed = "Secret remotes/b: user.exec: /bin/sh has failed (exit status: 3) and says: \
                  no such account";
    world.says(failed);
    plugin.does("echo hush");
    world.says("user.exec: /bin/sh prints 5 bytes that are no ExecCredential");
    plugin.prints(&json!({"token": "nonsense"}));
    world.says("refuses the credentials (401");
    // Nobody but the program knows that it has another one.
    plugin.prints(&json!({"token": world.token}));
    world.is_in_sync("by a program");
    // One that expires is had anew, and nobody notices.
    let soon = "date -u -d '+4 seconds' +%Y-%m-%dT%H:%M:%SZ";
    let expiring = format!(
        "echo '{{\"status\": {{\"token\": \"{}\", \"expirationTimestamp\": \"'$({soon})'\"}}}}'",
        world.token
    );
    plugin.does(&expiring);
    // Makes it run.
    let before = plugin.runs();
    world.write(&format!("{}, tls-server-name: 192.0.2.2", world.server()), &plugin.user());
    world.joined.until("run", |_| plugin.runs() > before);
    let losses = |told: &Told| told.status.remotes["b"].cluster.contact_losses;
    let before = (plugin.runs(), losses(&world.is_in_sync("by a token that expires")));
    world.joined.until("run before it expires", |_| plugin.runs() >= before.0 + 2);
    assert_eq!(losses(&world.is_in_sync("with the next token")), before.1);
    plugin.does("echo hush; echo no such account >&2; exit 3");
    world.says(failed);
    let (certificate, key) = world.authority.client();
    plugin.prints(&json!({"clientCertificateData": certificate, "clientKeyData": key}));
    world.is_in_sync("by a program's certificate");
}
