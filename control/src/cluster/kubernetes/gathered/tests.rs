use serde_json::{Value, json};

use super::*;
use crate::cluster::object::{convert, written_name};
use crate::policy::api::PolicyKind;

fn item(kind: Kind, value: &Value) -> Item {
    let written = written_name(kind, value).expect("a name");
    Item { written, converted: convert(kind, value) }
}

fn remote() -> Gathered {
    Gathered::new(ClusterId::Remote("r".into()))
}

fn pod(name: &str, app: &str) -> Item {
    item(
        Kind::Pod,
        &json!({
            "metadata": {"name": name, "namespace": "n", "labels": {"app": app}},
            "spec": {"nodeName": "a"}, "status": {"podIP": "10.0.0.1"},
        }),
    )
}

fn namespace(name: &str, uid: &str) -> Item {
    item(Kind::Namespace, &json!({"metadata": {"name": name, "uid": uid}}))
}

fn policy(stored: &str, action: &str) -> Item {
    let value = json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "GlobalNetworkPolicy",
        "metadata": {"name": stored},
        "spec": {"selector": "all()", "types": ["Ingress"], "ingress": [{"action": action}]},
    });
    item(Kind::Policy(PolicyKind::GlobalNetworkPolicy), &value)
}

impl Gathered {
    fn list(&mut self, kind: Kind, items: Vec<Item>) {
        self.tell(kind, Step::Begin);
        self.tell(kind, Step::Page(items));
        self.tell(kind, Step::Listed("7".into()));
        self.tell(kind, Step::Watching);
    }

    /// All kinds that have not told anything have nothing.
    fn rest(&mut self) {
        let unknown = |feed: &Progressed| feed.progress == Progress::Unknown;
        let kinds: Vec<Kind> =
            self.feeds.iter().filter(|(_, feed)| unknown(feed)).map(|(kind, _)| *kind).collect();
        for kind in kinds {
            self.list(kind, Vec::new());
        }
    }

    fn told(&mut self) -> Vec<String> {
        let conditions = self.view().conditions;
        conditions.iter().map(|c| format!("{:?} {}: {}", c.severity, c.object, c.message)).collect()
    }

    fn pods(&mut self) -> Vec<String> {
        self.view().objects.pods.keys().map(ToString::to_string).collect()
    }
}

fn denial(verb: &'static str, resource: &str) -> Step<Item> {
    let (resource, message) = (resource.to_owned(), "no".to_owned());
    Step::Forbidden(Denial { verb, resource, message })
}

#[test]
fn it_is_complete_when_every_kind_is_followed() {
    let mut all = remote();
    for kind in all.feeds.keys().copied().collect::<Vec<_>>() {
        assert!(!all.complete());
        all.tell(kind, Step::Begin);
        all.tell(kind, Step::Page(Vec::new()));
        assert!(!all.complete());
        all.tell(kind, Step::Listed("1".into()));
        assert!(!all.complete(), "listed is not followed");
        all.tell(kind, Step::Watching);
    }
    assert!(all.complete());
    assert_eq!(all.version(Kind::Pod), Some("1"));
    all.tell(Kind::Pod, Step::Failing("x".into()));
    assert!(!all.complete());
    assert_eq!(all.trouble(), Some("x".into()));
    all.tell(Kind::Pod, Step::Watching);
    assert!(all.complete());
}

#[test]
fn a_list_sweeps_what_it_does_not_name() {
    let mut all = remote();
    all.list(Kind::Pod, vec![pod("p", "x"), pod("q", "x")]);
    all.rest();
    assert_eq!(all.pods(), ["n/p", "n/q"]);
    assert!(!all.changed());
    // One that is broken off sweeps nothing.
    all.tell(Kind::Pod, Step::Begin);
    all.tell(Kind::Pod, Step::Page(vec![pod("p", "x")]));
    all.reconnect(false);
    assert_eq!(all.version(Kind::Pod), None);
    assert_eq!(all.version(Kind::Node), Some("7"));
    assert_eq!(all.objects.pods.len(), 2);
    all.rest();
    assert_eq!(all.pods(), [""; 0]);
    all.reconnect(true);
    assert_eq!(all.version(Kind::Node), None);
}

#[test]
fn what_is_equal_is_not_told_again() {
    let mut all = remote();
    all.list(Kind::Pod, vec![pod("p", "x")]);
    all.rest();
    let before = all.view();
    let put = |item: Item| Step::Changed(vec![Change::Put(item)], "8".into());
    all.tell(Kind::Pod, put(pod("p", "x")));
    let finished = json!({"metadata": {"name": "f", "namespace": "n"}, "spec": {}, "status": {}});
    all.tell(Kind::Pod, put(item(Kind::Pod, &finished)));
    assert!(!all.changed());
    assert_eq!(all.version(Kind::Pod), Some("8"));
    all.list(Kind::Pod, vec![pod("p", "x")]);
    let after = all.view();
    assert!(Arc::ptr_eq(&before.objects, &after.objects));
    all.tell(Kind::Pod, put(pod("p", "y")));
    assert!(all.changed());
    all.view();
    all.tell(Kind::Pod, Step::Changed(vec![Change::Gone(pod("p", "y"))], "9".into()));
    assert_eq!(all.pods(), [""; 0]);
}

#[test]
fn a_right_that_goes_leaves_what_is_known() {
    let mut all = remote();
    all.list(Kind::Pod, vec![pod("p", "x")]);
    all.rest();
    all.tell(Kind::Namespace, denial("watch", "namespaces"));
    assert!(all.complete());
    assert_eq!(all.pods(), ["n/p"]);
    assert_eq!(
        all.told(),
        ["Warning namespaces: may not be read (no); grant `watch` on namespaces; what was last \
             known of them stays in force"]
    );
    all.list(Kind::Namespace, Vec::new());
    assert_eq!(all.told(), [""; 0]);
}

#[test]
fn a_right_that_never_was_leaves_out_what_depends_on_it() {
    for kind in [Kind::Namespace, Kind::ServiceAccount] {
        let mut all = remote();
        all.list(Kind::Pod, vec![pod("p", "x")]);
        all.tell(kind, denial("list", "resource"));
        all.rest();
        assert!(all.complete());
        assert_eq!(all.pods(), [""; 0]);
        assert!(all.told()[0].ends_with("its pods have no identity without their labels"));
        all.list(kind, Vec::new());
        assert_eq!(all.pods(), ["n/p"]);
    }
    let mut all = remote();
    all.tell(Kind::FelixConfiguration, denial("list", "felixconfigurations"));
    all.rest();
    assert!(all.complete());
    assert_eq!(all.told(), [""; 0], "nobody asked for it");
    let mut local = Gathered::new(ClusterId::Local);
    local.tell(Kind::Policy(PolicyKind::Tier), denial("list", "tiers"));
    local.rest();
    assert!(!local.complete());
    assert_eq!(
        local.trouble().as_deref(),
        Some(
            "may not be read (no); grant `list` on tiers, without which it is not known what is \
             allowed"
        )
    );
    let mut local = Gathered::new(ClusterId::Local);
    local.tell(Kind::Policy(PolicyKind::StagedNetworkPolicy), denial("list", "staged"));
    local.rest();
    assert!(local.complete(), "staged policies are not enforced");
}

#[test]
fn what_is_not_served_is_not_there() {
    let mut all = remote();
    all.list(Kind::Pod, vec![pod("p", "x")]);
    all.rest();
    all.view();
    all.tell(Kind::Pod, Step::Absent);
    assert!(all.complete());
    assert_eq!(all.pods(), [""; 0]);
    all.list(Kind::Pod, vec![pod("p", "x")]);
    assert_eq!(all.pods(), ["n/p"]);
    assert_eq!(all.told(), [""; 0]);
    all.tell(Kind::IpPool, Step::Absent);
    assert!(all.told()[0].starts_with("Error IPPool: neither crd.projectcalico.org nor"));
    let mut local = Gathered::new(ClusterId::Local);
    local.tell(Kind::RemoteClusterConfiguration, Step::Absent);
    local.rest();
    assert!(local.complete());
    assert!(local.told()[0].starts_with("Warning RemoteClusterConfiguration: is not served"));
}

#[test]
fn a_broken_object_keeps_its_last_good_version() {
    let kind = Kind::Policy(PolicyKind::GlobalNetworkPolicy);
    let mut local = Gathered::new(ClusterId::Local);
    local.list(kind, vec![policy("default.p", "Allow"), policy("default.q", "Sing")]);
    local.rest();
    assert_eq!(local.view().objects.policy.0.len(), 1);
    let told = local.told();
    assert_eq!(told.len(), 1);
    assert!(told[0].starts_with("Error GlobalNetworkPolicy default.q: spec.ingress[0].action"));
    assert!(told[0].ends_with("; it is not in force"), "{told:?}");
    local.list(kind, vec![policy("default.p", "Sing")]);
    assert_eq!(local.view().objects.policy.0.len(), 1);
    let told = local.told();
    assert!(told[0].ends_with("; its last good version stays in force"), "{told:?}");
    local.list(kind, Vec::new());
    assert_eq!(local.view().objects.policy.0.len(), 0);
    assert_eq!(local.told(), [""; 0]);
}

#[test]
fn of_two_policies_with_one_name_the_first_counts() {
    let kind = Kind::Policy(PolicyKind::GlobalNetworkPolicy);
    let (prefixed, plain) = (policy("default.p", "Allow"), policy("p", "Deny"));
    let views = [[&prefixed, &plain], [&plain, &prefixed]].map(|order| {
        let mut local = Gathered::new(ClusterId::Local);
        local.list(kind, order.into_iter().cloned().collect());
        local.rest();
        assert!(local.told()[0].contains("is stored more than once, as default.p, p; the first"));
        local.view()
    });
    assert_eq!(views[0], views[1]);
    assert_eq!(views[0].objects.policy.0.len(), 1);
    let mut local = Gathered::new(ClusterId::Local);
    local.list(kind, vec![prefixed.clone(), plain]);
    local.rest();
    local.tell(kind, Step::Changed(vec![Change::Gone(prefixed)], "9".into()));
    assert_eq!(local.view().objects.policy.0.len(), 1, "the other takes its place");
    assert_ne!(local.view(), views[0]);
    assert_eq!(local.told(), [""; 0]);
}

#[test]
fn the_cluster_is_known_by_its_namespace() {
    let mut all = remote();
    assert_eq!(all.uid(), None);
    all.list(Kind::Namespace, vec![namespace("kube-system", "u"), namespace("n", "other")]);
    assert_eq!(all.uid(), Some("u"));
    assert_eq!(all.newest(), 7);
}
