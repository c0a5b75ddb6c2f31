//! The servers of one cluster.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tieline_lab::{Lab, Netns, Process, Segment, Signal, Underlay};

/// How long a server may take that normally takes a few seconds.
const PATIENCE: Duration = Duration::from_secs(120);
/// Port of the API server; etcd's is reached from within the namespace only.
const PORT: u16 = 6443;
const ETCD: &str = "http://127.0.0.1:2379";
const ETCD_PEER: &str = "http://127.0.0.1:2380";
/// Address of an API server that is alone (RFC 5737).
const ALONE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ADMIN_TOKEN: &str = "admin-of-the-test";
/// Whose certificates clients may have.
const CLIENTS: &str = "clients.crt";
/// Those that a test sees the work of.
const CONTROLLERS: &str = "serviceaccount-token-controller,serviceaccount-controller,\
                           endpointslice-controller,namespace-controller,\
                           garbage-collector-controller";

/// A cluster's control plane. Ends when it is dropped, or its lab is.
#[derive(Debug)]
pub struct ApiCluster {
    name: String,
    program: PathBuf,
    netns: Netns,
    address: IpAddr,
    dir: PathBuf,
    etcd: Option<Process>,
    api: Option<Process>,
    controllers: Option<Process>,
    /// Numbers the logs of processes.
    count: AtomicU32,
}

impl ApiCluster {
    /// Starts a cluster in a namespace of its own, which nothing reaches from
    /// outside: use [`Self::netns`] to be inside.
    pub fn alone(lab: &Lab, program: &Path, name: &str) -> Self {
        let netns = lab.netns(&format!("{name}-api")).unwrap();
        // An API server wants an address that is not a loopback one.
        netns.ip([format!("address add {ALONE}/32 dev lo")]).unwrap();
        Self::start(lab, program, name, netns, ALONE.into())
    }

    /// Starts a cluster whose API server has an address on an underlay.
    pub fn on(
        lab: &Lab,
        program: &Path,
        name: &str,
        underlay: &mut Underlay,
        segment: Segment,
    ) -> Self {
        let netns = lab.netns(&format!("{name}-api")).unwrap();
        let attachment = underlay.attach(segment, &netns).unwrap();
        Self::start(lab, program, name, netns, attachment.v4.into())
    }

    /// Starts a cluster in a namespace that is there, and has this address.
    pub fn start(lab: &Lab, program: &Path, name: &str, netns: Netns, address: IpAddr) -> Self {
        Self::start_with(lab, program, name, netns, address, None)
    }

    /// The same, with an authority (PEM) whose certificates tell who a client is.
    pub fn start_with(
        lab: &Lab,
        program: &Path,
        name: &str,
        netns: Netns,
        address: IpAddr,
        clients: Option<&str>,
    ) -> Self {
        let dir = lab.dir().join(format!("kube-{name}"));
        let mut cluster = Self {
            name: name.to_owned(),
            program: program.to_owned(),
            netns,
            address,
            dir,
            etcd: None,
            api: None,
            controllers: None,
            count: AtomicU32::new(0),
        };
        fs::create_dir_all(cluster.dir.join("etcd")).unwrap();
        // The key that signs service accounts' tokens, and one to serve with.
        cluster.make_certificate("accounts");
        cluster.make_certificate("serving");
        let admin = format!("{ADMIN_TOKEN},admin,admin,\"system:masters\"\n");
        fs::write(cluster.dir.join("tokens.csv"), admin).unwrap();
        if let Some(authority) = clients {
            fs::write(cluster.dir.join(CLIENTS), authority).unwrap();
        }
        cluster.start_etcd();
        cluster.start_api();
        cluster.start_controllers();
        cluster
    }

    /// Where the servers are.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The API server's URL.
    pub fn url(&self) -> String {
        format!("https://{}", SocketAddr::new(self.address, PORT))
    }

    /// The certificate authority of the serving certificate, PEM.
    pub fn ca(&self) -> String {
        fs::read_to_string(self.ca_path()).unwrap()
    }

    fn ca_path(&self) -> PathBuf {
        self.dir.join("serving/apiserver.crt")
    }

    /// A kubeconfig file with all rights. Not for what is tested: that has the
    /// rights that are shipped.
    pub fn admin(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    /// A folder for files of this cluster.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// UID of the namespace kube-system: what tells clusters apart.
    pub fn uid(&self) -> String {
        let namespace = self.get(&["namespace", "kube-system"]);
        namespace["metadata"]["uid"].as_str().unwrap().to_owned()
    }
}

/// What a test does to the objects.
impl ApiCluster {
    /// Runs kubectl as admin; what it prints.
    pub fn kubectl(&self, args: &[&str]) -> String {
        self.succeed(args, None)
    }

    /// Applies manifests as admin, YAML or JSON.
    pub fn apply(&self, manifests: &str) {
        self.succeed(&["apply", "--server-side", "--force-conflicts", "-f", "-"], Some(manifests));
    }

    /// What `kubectl get ARGS` has, as admin.
    pub fn get(&self, args: &[&str]) -> Value {
        let all = [&["get", "-o", "json"], args].concat();
        serde_json::from_str(&self.succeed(&all, None)).unwrap()
    }

    fn succeed(&self, args: &[&str], input: Option<&str>) -> String {
        let output = self.kubectl_with(&self.admin(), args, input);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: kubectl {args:?}: {said}", self.name);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs kubectl with a kubeconfig file and, if it is to have any, standard
    /// input; whatever comes of it.
    pub fn kubectl_with(&self, kubeconfig: &Path, args: &[&str], input: Option<&str>) -> Output {
        let mut command = self.command("kubectl");
        command.args(args).env("KUBECONFIG", kubeconfig).env("HOME", &self.dir);
        let name = self.log("kubectl");
        match input {
            None => self.netns.output(&name, command, PATIENCE),
            Some(input) => self.netns.output_of(&name, command, input, PATIENCE),
        }
        .unwrap()
    }

    /// Writes a cluster in bulk, or changes one all the time, as `kube load` and
    /// `kube churn` do (`tests/kube/load.go` has the flags); the report.
    pub fn bulk(&self, verb: &str, args: &[&str], within: Duration) -> Value {
        let mut command = self.command(verb);
        command.arg("--kubeconfig").arg(self.admin()).args(args);
        let output = self.netns.output(&self.log(verb), command, within).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {verb}: {said}", self.name);
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(verb);
        command
    }

    fn log(&self, what: &str) -> String {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        format!("{}-{what}-{count}", self.name)
    }
}

/// What goes wrong with the servers.
impl ApiCluster {
    /// The API server hangs: connections stay, nothing answers.
    pub fn pause(&self) {
        self.api.as_ref().unwrap().signal(Signal::Stop).unwrap();
    }

    /// The API server goes on after [`Self::pause`].
    pub fn resume(&self) {
        self.api.as_ref().unwrap().signal(Signal::Cont).unwrap();
    }

    /// The API server is killed.
    pub fn kill(&mut self) {
        self.controllers = None;
        self.api = None;
    }

    /// The API server comes back after [`Self::kill`], and is ready.
    pub fn revive(&mut self) {
        self.start_api();
        self.start_controllers();
    }

    /// Another, empty cluster takes the place of this one: same address,
    /// certificate and admin, nothing else.
    pub fn replace(&mut self) {
        self.kill();
        self.etcd = None;
        fs::remove_dir_all(self.dir.join("etcd")).unwrap();
        fs::create_dir_all(self.dir.join("etcd")).unwrap();
        self.start_etcd();
        self.revive();
    }

    /// Forgets all revisions but the last, in etcd and in the API server's
    /// cache, which therefore starts anew: whoever goes on from an earlier
    /// revision is told 410 Gone.
    pub fn expire_history(&mut self) {
        // So that there is a later revision than anybody has seen.
        let stamp = "expire_history=now";
        self.kubectl(&["annotate", "namespace", "default", "--overwrite", stamp]);
        self.kubectl(&["annotate", "namespace", "default", "expire_history-"]);
        self.kill();
        self.help("compact", &["--client", ETCD]);
        self.revive();
    }

    /// The API server gets another certificate, of another authority, without
    /// being restarted. Returns when it serves with it.
    pub fn rotate_certificate(&mut self) {
        self.controllers = None;
        self.make_certificate("serving");
        self.wait_ready();
        self.start_controllers();
    }
}

/// Starting.
impl ApiCluster {
    fn start_etcd(&mut self) {
        let mut command = self.command("etcd");
        command.arg("--dir").arg(self.dir.join("etcd"));
        command.args(["--client", ETCD, "--peer", ETCD_PEER]);
        self.etcd = Some(self.netns.spawn(&self.log("etcd"), command).unwrap());
    }

    fn start_api(&mut self) {
        let at = |name: &str| self.dir.join(name).display().to_string();
        let mut command = self.command("apiserver");
        command.args([
            format!("--etcd-servers={ETCD}"),
            // Only tests compact.
            "--etcd-compaction-interval=0".to_owned(),
            format!("--bind-address={}", self.address),
            format!("--secure-port={PORT}"),
            format!("--cert-dir={}", at("serving")),
            format!("--service-account-key-file={}", at("accounts/apiserver.key")),
            format!("--service-account-signing-key-file={}", at("accounts/apiserver.key")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
            // As everywhere: network agents are privileged.
            "--allow-privileged=true".to_owned(),
            format!("--token-auth-file={}", at("tokens.csv")),
        ]);
        if self.dir.join(CLIENTS).exists() {
            command.arg(format!("--client-ca-file={}", at(CLIENTS)));
        }
        self.api = Some(self.netns.spawn(&self.log("apiserver"), command).unwrap());
    }

    /// Starts the controllers and waits until they and the API server work.
    fn start_controllers(&mut self) {
        let at = |path: PathBuf| path.display().to_string();
        let mut command = self.command("controller-manager");
        command.args([
            format!("--kubeconfig={}", at(self.admin())),
            format!(
                "--service-account-private-key-file={}",
                at(self.dir.join("accounts/apiserver.key"))
            ),
            format!("--root-ca-file={}", at(self.ca_path())),
            format!("--controllers={CONTROLLERS}"),
            "--leader-elect=false".to_owned(),
            "--secure-port=0".to_owned(),
        ]);
        self.wait_ready();
        self.controllers = Some(self.netns.spawn(&self.log("controllers"), command).unwrap());
        let admin = at(self.admin());
        self.help("ready", &["--kubeconfig", &admin, "--within", "100s", "--controllers"]);
    }

    fn wait_ready(&self) {
        let admin = self.admin().display().to_string();
        let (api, begun) = (self.api.as_ref().unwrap(), Instant::now());
        while let Err(error) = self.try_help("ready", &["--kubeconfig", &admin, "--within", "5s"]) {
            assert!(
                begun.elapsed() < PATIENCE && api.try_wait().unwrap().is_none(),
                "{}: {error}\n{}",
                self.name,
                api.transcript()
            );
        }
    }

    /// A key and a certificate with its authority, and the admin's kubeconfig
    /// that trusts it.
    fn make_certificate(&self, folder: &str) {
        let path = self.dir.join(folder);
        fs::create_dir_all(&path).unwrap();
        let (path, address) = (path.display().to_string(), self.address.to_string());
        self.help("certificate", &["--dir", &path, "--address", &address]);
        let (url, ca) = (self.url(), path + "/apiserver.crt");
        let admin = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: admin\n\
             clusters: [{{name: c, cluster: {{server: '{url}', certificate-authority: '{ca}'}}}}]\n\
             users: [{{name: admin, user: {{token: {ADMIN_TOKEN}}}}}]\n\
             contexts: [{{name: admin, context: {{cluster: c, user: admin}}}}]\n"
        );
        fs::write(self.admin(), admin).unwrap();
    }

    fn help(&self, verb: &str, args: &[&str]) {
        self.try_help(verb, args).unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }

    fn try_help(&self, verb: &str, args: &[&str]) -> Result<(), String> {
        let mut command = self.command(verb);
        command.args(args);
        let output = self.netns.output(&self.log(verb), command, PATIENCE).unwrap();
        let said = || format!("kube {verb}: {}", String::from_utf8_lossy(&output.stderr));
        output.status.success().then_some(()).ok_or_else(said)
    }
}
