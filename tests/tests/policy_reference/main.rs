//! From manifests to verdicts against a direct reading of the same manifests:
//! random clusters, policies of every kind in both storage groups, edits and
//! connections.
//!
//! `TIELINE_ORACLE_PAIRS=1000000` sets how many pairs of clusters and packet are
//! tried, from seeds of this run's own (`TIELINE_ORACLE_SEED` repeats one); by
//! default a slice that is always the same.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::{Value, json};
use tieline::cluster::files::{Content, Loaded, load};
use tieline::derive::{Derived, Deriver};
use tieline::policy::explain::{
    Answer, Asked, DecidedBy, ExplainError, Explainer, Protocol, Query, Side, Verdict,
};
use tieline::state::{ClusterId, RemoteCluster, Severity, World};
use tieline_tests::random::Rng;
use tieline_tests::reference::{Because, Clusters, Packet, Reference};

use self::generate::{clusters, edit, packet};
use self::shrink::shrink;

mod cases;
mod generate;
mod kubernetes;
mod shrink;

/// Packets per state of the clusters.
const PACKETS: usize = 32;

/// Edits to each cluster.
const EDITS: usize = 3;

/// The clusters as their sources read them, from one state to the next.
struct Sources {
    local: Loaded,
    remotes: BTreeMap<String, Loaded>,
    deriver: Deriver,
}

impl Default for Sources {
    fn default() -> Self {
        let local = Loaded::new(ClusterId::Local);
        Self { local, remotes: BTreeMap::new(), deriver: Deriver::default() }
    }
}

impl Sources {
    /// What the product makes of the manifests, or why it refuses one. `stored`
    /// says whether an object is in the storage group `crd.projectcalico.org/v1`.
    fn derive(
        &mut self,
        clusters: &Clusters,
        stored: &dyn Fn(&Value) -> bool,
    ) -> Result<Derived, String> {
        let read = |before: &Loaded, objects: &[Value]| {
            let mut text = String::new();
            for object in objects {
                let object = if stored(object) { in_storage(object) } else { object.clone() };
                writeln!(text, "{object}").expect("a text");
            }
            load(before, [("all.json".to_owned(), Content::Bytes(text.into_bytes()))].into())
        };
        self.local = read(&self.local, &clusters.local);
        let mut world = World {
            node: "n1".into(),
            include_local_vteps: false,
            local: self.local.view().objects.clone(),
            remotes: BTreeMap::new(),
        };
        let mut refused = self.local.view().conditions.to_vec();
        for (name, objects) in &clusters.remotes {
            let id = ClusterId::Remote(name.as_str().into());
            let before = self.remotes.entry(name.clone()).or_insert_with(|| Loaded::new(id));
            *before = read(before, objects);
            refused.extend(before.view().conditions.iter().cloned());
            let objects = before.view().objects.clone();
            world.remotes.insert(name.as_str().into(), RemoteCluster { overlay: true, objects });
        }
        refused.retain(|condition| condition.severity == Severity::Error);
        match refused.first() {
            Some(condition) => Err(format!("{}: {}", condition.object, condition.message)),
            None => Ok(self.deriver.derive(Arc::new(world))),
        }
    }
}

/// A Calico object as `crd.projectcalico.org/v1` stores it: policies of tier
/// `default` under another name, labels in an annotation.
fn in_storage(object: &Value) -> Value {
    let mut stored = object.clone();
    if object["apiVersion"] != "projectcalico.org/v3" {
        return stored;
    }
    stored["apiVersion"] = "crd.projectcalico.org/v1".into();
    let kind = object["kind"].as_str().unwrap_or_default();
    let meta = &object["metadata"];
    if kind.ends_with("NetworkPolicy") && !kind.contains("Kubernetes") {
        fill_types(&mut stored["spec"]);
    }
    let mut real = json!({"creationTimestamp": null});
    if kind.ends_with("NetworkPolicy") && !kind.contains("Kubernetes") {
        let name = meta["name"].as_str().unwrap_or_default();
        let tier = object.pointer("/spec/tier").and_then(Value::as_str).unwrap_or("default");
        stored["metadata"]["name"] = format!("{tier}.{name}").into();
        // Older versions kept no name where they had only put the tier before it.
        if tier != "default" || name.len() > 4 || name.contains('.') {
            real["name"] = name.into();
        }
    }
    if let Some(labels) = meta.get("labels") {
        real["labels"] = labels.clone();
        stored["metadata"]["labels"] = json!({"projectcalico.org/tier": "x"});
    }
    stored["metadata"]["annotations"] = json!({"projectcalico.org/metadata": real.to_string()});
    stored
}

/// Calico's API puts in the types that the rules stand for.
fn fill_types(spec: &mut Value) {
    let rules = |list: &str| spec[list].as_array().is_some_and(|rules| !rules.is_empty());
    if spec["types"].as_array().is_some_and(|types| !types.is_empty()) {
        return;
    }
    let types = match (rules("ingress"), rules("egress")) {
        (_, false) => json!(["Ingress"]),
        (false, true) => json!(["Egress"]),
        (true, true) => json!(["Ingress", "Egress"]),
    };
    spec["types"] = types;
}

fn query(packet: &Packet) -> Query {
    let icmp = [1, 58].contains(&packet.protocol);
    Query {
        from: Asked::Known(packet.from.to_string()),
        to: Asked::Known(packet.to.to_string()),
        protocol: Protocol(packet.protocol),
        port: packet.has_ports().then_some(packet.port),
        src_port: packet.has_ports().then_some(packet.source_port),
        icmp_type: icmp.then_some(packet.icmp.0),
        icmp_code: icmp.then_some(packet.icmp.1),
        ..Query::default()
    }
}

fn because(side: &Side) -> Because {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    match side.decided_by {
        DecidedBy::Rule => Because::Rule(
            text(&side.tier),
            side.policy_kind.unwrap_or_default().to_owned(),
            text(&side.policy),
            side.rule.unwrap_or_default(),
        ),
        DecidedBy::TierDefault => Because::TierDefault(text(&side.tier)),
        DecidedBy::Profile => Because::Profile(text(&side.profile)),
        DecidedBy::NoPolicy => Because::Profile("no policy at all".to_owned()),
    }
}

/// Sides judged, by what decided.
#[derive(Clone, Copy, Debug, Default)]
struct Judged {
    pairs: usize,
    rules: [usize; 2],
    defaults: usize,
    profiles: usize,
}

impl Judged {
    fn count(&mut self, sides: [Option<(bool, Because)>; 2]) {
        self.pairs += 1;
        for (allow, because) in sides.into_iter().flatten() {
            match because {
                Because::Rule(..) => self.rules[usize::from(allow)] += 1,
                Because::TierDefault(_) => self.defaults += 1,
                Because::Profile(_) => self.profiles += 1,
            }
        }
    }
}

/// Compares one answer, which is returned; the error says what differs.
fn compare(
    explainer: &mut Explainer<'_>,
    reference: &Reference<'_>,
    packet: &Packet,
) -> Result<[Option<(bool, Because)>; 2], String> {
    let expected = [false, true].map(|ingress| reference.judge(ingress, packet));
    let [egress, ingress] = match explainer.explain(&query(packet)) {
        Ok(Answer { verdict, egress, ingress, .. }) => {
            let sides = [egress, ingress];
            let allow = sides.iter().flatten().all(|side| side.verdict == Verdict::Allow);
            if Verdict::from(allow) != verdict {
                return Err(format!("{verdict:?} together, of {sides:?}"));
            }
            sides
        }
        Err(ExplainError::NotLocal { .. }) => [None, None],
        Err(error) => return Err(error.to_string()),
    };
    let told = |side: &Side| (side.verdict == Verdict::Allow, because(side));
    let found = [egress.as_ref().map(told), ingress.as_ref().map(told)];
    if found == expected {
        return Ok(found);
    }
    Err(format!("egress and ingress are {found:#?}\nand by the reference {expected:#?}"))
}

/// Compares in one state of the clusters, by itself.
fn alone(clusters: &Clusters, packet: &Packet) -> Result<(), String> {
    let derived = Sources::default().derive(clusters, &|_| false)?;
    compare(&mut Explainer::new(&derived).brief(), &Reference::new(clusters), packet).map(drop)
}

/// Tries one seed.
fn try_seed(seed: u64, judged: &mut Judged) -> Result<(), String> {
    let rng = &mut Rng(seed);
    let mut state = clusters(rng);
    let mut sources = Sources::default();
    for step in 0..=EDITS {
        if step > 0 {
            edit(rng, &mut state);
        }
        // An object stays in the form that it was stored in.
        let salt = seed as usize;
        let stored =
            |object: &Value| (object["metadata"].to_string().len() + salt).is_multiple_of(2);
        let context = || format!("seed {seed}, after {step} edits");
        let derived = sources.derive(&state, &stored).map_err(|e| format!("{}: {e}", context()))?;
        let mut explainer = Explainer::new(&derived).brief();
        let reference = Reference::new(&state);
        for _ in 0..PACKETS {
            let packet = packet(rng);
            match compare(&mut explainer, &reference, &packet) {
                Ok(sides) => judged.count(sides),
                Err(difference) => return Err(report(&context(), &state, &packet, &difference)),
            }
        }
    }
    Ok(())
}

/// A difference with the smallest clusters that show it.
fn report(context: &str, state: &Clusters, packet: &Packet, difference: &str) -> String {
    let differs = |clusters: &Clusters| {
        alone(clusters, packet).is_err_and(|difference| difference.starts_with("egress"))
    };
    if !differs(state) {
        return format!("{context}, only after edits: {packet:?}\n{difference}\n{state:#?}");
    }
    let small = shrink(state.clone(), differs);
    let mut text = format!("{context}: {packet:?}\n");
    text.push_str(&alone(&small, packet).expect_err("it differs"));
    for (cluster, objects) in
        std::iter::once(("local", &small.local)).chain(small.remotes.iter().map(|(n, o)| (&**n, o)))
    {
        for object in objects {
            write!(text, "\n{cluster}: {object}").expect("a text");
        }
    }
    text
}

#[test]
fn verdicts_are_as_the_manifests_read() {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{name} is {text:?}, no number")))
    };
    let wanted = number("TIELINE_ORACLE_PAIRS");
    let pairs = wanted.unwrap_or(20_000) as usize;
    let now = || std::time::UNIX_EPOCH.elapsed().expect("a clock").as_secs() << 20;
    let first = number("TIELINE_ORACLE_SEED").unwrap_or_else(|| wanted.map_or(0, |_| now()));
    let (mut judged, mut seed) = (Judged::default(), first);
    while judged.pairs < pairs {
        try_seed(seed, &mut judged).unwrap_or_else(|difference| panic!("{difference}"));
        seed += 1;
    }
    let Judged { pairs, rules: [denied, allowed], defaults, profiles } = judged;
    println!(
        "{pairs} pairs of a state of the clusters and a packet agree ({} states, seeds {first} to \
         {}): {allowed} sides allowed and {denied} denied by a rule, {defaults} denied by a tier's \
         default action, {profiles} decided by a profile",
        (seed - first) as usize * (EDITS + 1),
        seed - 1,
    );
    let fewest = [denied, allowed, defaults, profiles].into_iter().min().unwrap_or_default();
    assert!(fewest > pairs / 100, "the packets do not reach everything");
}
