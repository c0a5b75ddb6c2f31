//! What happened, as people and programs read it.
//!
//! The JSON form of [`Account`] is what `demo -o json` prints. Fields are only
//! ever added.

use std::net::Ipv4Addr;

use serde::Serialize;

use super::script::{CLUSTERS, ClusterPlan, Decider, Expect, NodePlan, Side, pod_name};
use crate::cli::text::{Columns, Tone, paint};

/// The whole story as it went.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Account {
    /// Whether every expectation held.
    pub(super) ok: bool,
    /// Where the clusters live: `root`, `user-namespace` or `captures`.
    pub(super) ground: String,
    /// Seconds from the first namespace to the last line.
    pub(super) seconds: f64,
    /// The chapters.
    pub(super) scenes: Vec<SceneAccount>,
}

impl Account {
    /// How many expectations there were, and how many of them did not hold.
    pub(super) fn count(&self) -> (usize, usize) {
        let lines = self.scenes.iter().flat_map(|scene| &scene.lines);
        (lines.clone().count(), lines.filter(|line| !line.ok()).count())
    }
}

/// A chapter as it went.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct SceneAccount {
    /// Its title.
    pub(super) title: String,
    /// What happened, in order.
    pub(super) lines: Vec<Line>,
}

/// One thing that happened.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub(super) enum Line {
    /// A connection that was asked about and made.
    Connection(Tried),
    /// Something that was found to be so, or not.
    Fact(Fact),
}

impl Line {
    /// Whether it is as expected.
    pub(super) fn ok(&self) -> bool {
        match self {
            Self::Connection(tried) => tried.ok,
            Self::Fact(fact) => fact.ok,
        }
    }
}

/// Something that was found to be so, or not.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Fact {
    /// In words.
    pub(super) text: String,
    /// Whether it is as expected.
    pub(super) ok: bool,
    /// Figures in it, by name with unit.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    pub(super) figures: serde_json::Map<String, serde_json::Value>,
}

impl Fact {
    pub(super) fn new(ok: bool, text: impl Into<String>) -> Self {
        Self { text: text.into(), ok, figures: serde_json::Map::new() }
    }

    /// Adds a figure for programs.
    pub(super) fn figure(mut self, name: &str, value: impl Into<serde_json::Value>) -> Self {
        self.figures.insert(name.to_owned(), value.into());
        self
    }
}

/// A TCP connection that was asked about and made.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Tried {
    /// Source pod.
    pub(super) from: String,
    /// Destination pod.
    pub(super) to: String,
    /// Destination port.
    pub(super) port: u16,
    /// `ipv4` or `ipv6`.
    pub(super) family: &'static str,
    /// What was expected: `allow`, `deny` or `no-route`.
    pub(super) expected: Verdict,
    /// Who was expected to decide, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) expected_deciders: Vec<String>,
    /// What the daemons of both ends say.
    pub(super) verdict: Verdict,
    /// What the sockets did, in words; with `captures`, what became of the
    /// frames.
    pub(super) socket: String,
    /// Whether the sockets connected and payload came back unharmed; with
    /// `captures`, whether both pods got the other's frame unharmed.
    pub(super) connected: bool,
    /// Who decided on each side: egress at the source's node, then ingress at
    /// the destination's.
    pub(super) decisions: Vec<Decision>,
    /// Whether verdict, sockets and deciders are as expected.
    pub(super) ok: bool,
}

/// What became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Verdict {
    /// Allowed by both sides, and there is a route.
    Allow,
    /// Denied by a side.
    Deny,
    /// Allowed by both sides, but there is no route.
    NoRoute,
}

impl From<Expect> for Verdict {
    fn from(expect: Expect) -> Self {
        match expect {
            Expect::Allow => Self::Allow,
            Expect::Deny => Self::Deny,
            Expect::NoRoute => Self::NoRoute,
        }
    }
}

impl Verdict {
    /// What follows from what the nodes of both ends say, each by its name:
    /// `explain -o json` at the source's and at the destination's.
    pub(super) fn of(
        (source, leaving): (&str, &serde_json::Value),
        (target, arriving): (&str, &serde_json::Value),
    ) -> (Self, Vec<Decision>) {
        let decisions: Vec<_> = [
            Decision::of(Side::Egress, source, leaving),
            Decision::of(Side::Ingress, target, arriving),
        ]
        .into_iter()
        .flatten()
        .collect();
        // Each end's policy is one side's business; without both there is no word.
        let denied = decisions.len() < 2 || decisions.iter().any(|decision| !decision.allow);
        let verdict = match (denied, leaving["route"].is_null()) {
            (true, _) => Self::Deny,
            (false, true) => Self::NoRoute,
            (false, false) => Self::Allow,
        };
        (verdict, decisions)
    }

    fn text(self) -> String {
        match self {
            Self::Allow => paint("allowed", Tone::Good),
            Self::Deny => paint("denied", Tone::Warn),
            Self::NoRoute => paint("no route", Tone::Warn),
        }
    }
}

/// What one side's policy said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Decision {
    /// `egress` or `ingress`.
    pub(super) direction: &'static str,
    /// The node whose daemon was asked.
    pub(super) node: String,
    /// Whether it allows.
    pub(super) allow: bool,
    /// `rule`, `tier-default`, `profile` or `no-policy`.
    pub(super) decided_by: String,
    /// The tier that decided.
    pub(super) tier: Option<String>,
    /// The policy that decided.
    pub(super) policy: Option<String>,
    /// Number of the rule in it, from 1.
    pub(super) rule: Option<u64>,
    /// The profile that decided.
    pub(super) profile: Option<String>,
    /// The daemon's own words.
    pub(super) reason: String,
}

impl Decision {
    /// A side of what `explain -o json` prints; `None` when the daemon gives
    /// none, because the pod is not one of its cluster.
    pub(super) fn of(side: Side, node: &str, answer: &serde_json::Value) -> Option<Self> {
        let direction = if side == Side::Egress { "egress" } else { "ingress" };
        let said = answer.get(direction)?.as_object()?;
        let text = |key: &str| said.get(key).and_then(|value| value.as_str()).map(str::to_owned);
        Some(Self {
            direction,
            node: node.to_owned(),
            allow: said.get("verdict")? == "allow",
            decided_by: text("decided_by").unwrap_or_default(),
            tier: text("tier"),
            policy: text("policy"),
            rule: said.get("rule").and_then(serde_json::Value::as_u64),
            profile: text("profile"),
            reason: text("reason").unwrap_or_default(),
        })
    }

    /// Whether it is who the script says.
    pub(super) fn is(&self, decider: &Decider) -> bool {
        let direction = if decider.side == Side::Egress { "egress" } else { "ingress" };
        self.direction == direction
            && self.tier.as_deref() == Some(decider.tier)
            && match decider.rule {
                Some((policy, rule)) => {
                    self.policy.as_deref() == Some(policy) && self.rule == Some(rule)
                }
                None => self.decided_by == "tier-default",
            }
    }

    /// Node and direction, tier, policy, rule.
    fn cells(&self) -> [String; 4] {
        let (tier, policy, rule) = match self.decided_by.as_str() {
            "rule" => (
                self.tier.clone().unwrap_or_default(),
                self.policy.clone().unwrap_or_default(),
                self.rule.map(|rule| format!("rule {rule}")).unwrap_or_default(),
            ),
            "tier-default" => (
                self.tier.clone().unwrap_or_default(),
                "no rule fits: end of tier".into(),
                String::new(),
            ),
            "profile" => {
                let profile = self.profile.clone().unwrap_or_default();
                ("-".into(), format!("no policy: profile {profile}"), String::new())
            }
            _ => ("-".into(), self.reason.clone(), String::new()),
        };
        [format!("{} {}", self.node, self.direction), tier, policy, rule]
    }
}

impl Tried {
    /// Cells of the decisions that people want to see: the one that denied, or
    /// both, which are one when no policy selects either end.
    fn telling(&self) -> Vec<[String; 4]> {
        if let Some(deny) = self.decisions.iter().find(|decision| !decision.allow) {
            return vec![deny.cells()];
        }
        match &self.decisions[..] {
            [one, two] if one.profile.is_some() && one.profile == two.profile => {
                let [_, tier, policy, rule] = one.cells();
                vec![["both ends".to_owned(), tier, policy, rule]]
            }
            all => all.iter().map(Decision::cells).collect(),
        }
    }

    /// Whether the other family went the same way.
    fn same_way(&self, other: &Self) -> bool {
        let plain = |tried: &Self| Self { family: "", ..tried.clone() };
        plain(self) == plain(other)
    }

    fn rows(&self, columns: &mut Columns, families: &str) {
        let mark = if self.ok { paint("ok", Tone::Good) } else { paint("FAILED", Tone::Bad) };
        let mut head = vec![
            mark,
            format!("{} -> {}", self.from, self.to),
            format!("tcp {}", self.port),
            families.to_owned(),
            self.verdict.text(),
            self.socket.clone(),
        ];
        let telling = self.telling();
        for cells in telling.iter().cloned() {
            head.extend(cells);
            columns.row(std::mem::replace(&mut head, vec![String::new(); 6]));
        }
        if telling.is_empty() {
            columns.row(head);
        }
        if !self.ok {
            let by = self.expected_deciders.join(", ");
            columns.row(["", "expected", "", "", &self.expected.text(), "", "", "", &by]);
        }
    }
}

/// Which pods are on which nodes.
pub(super) fn who_is_there() -> Vec<Fact> {
    let node = |node: &NodePlan| {
        let pods: Vec<_> = node.pods.iter().map(|pod| pod.name).collect();
        format!("{} ({})", node.name, pods.join(", "))
    };
    let cluster = |plan: &ClusterPlan| {
        let nodes: Vec<_> = plan.nodes.iter().map(node).collect();
        Fact::new(true, format!("{:<4} {}", plan.name, nodes.join("  ")))
    };
    CLUSTERS.iter().map(cluster).collect()
}

/// The policies of both clusters.
pub(super) fn policies_in_words() -> Vec<Fact> {
    vec![
        Fact::new(
            true,
            "app: app == 'backend-app' may open TCP 5432 to app == 'postgres', no more",
        ),
        Fact::new(
            true,
            "db:  app == 'postgres' takes TCP 5432 from app == 'backend-app', no more; nobody \
             takes TCP 22",
        ),
    ]
}

/// Whether a node knows who `postgres`' address is, from what `explain` says
/// there of a connection to it.
pub(super) fn identity(
    node: &str,
    address: Ipv4Addr,
    answer: &serde_json::Value,
    expected: bool,
) -> Fact {
    let wanted = pod_name("postgres");
    let identities = answer["to"]["identities"].as_array();
    let known = identities
        .into_iter()
        .flatten()
        .any(|identity| identity["cluster"] == "db" && identity["name"].as_str() == Some(&*wanted));
    let text = if known {
        format!("{node} knows {address} as db:{wanted}")
    } else {
        format!("{node} knows nothing of {address}")
    };
    Fact::new(known == expected, text)
}

/// Lines for people. Connections that follow each other are aligned, and the
/// two families share a line when they went the same way.
pub(super) fn render(lines: &[Line]) -> String {
    let (mut out, mut columns) = (String::new(), Columns::default());
    let mut lines = lines.iter().peekable();
    while let Some(line) = lines.next() {
        match line {
            Line::Connection(tried) => {
                let both = match lines.peek() {
                    Some(Line::Connection(next)) => tried.same_way(next),
                    _ => false,
                };
                if both {
                    lines.next();
                }
                tried.rows(&mut columns, if both { "v4 v6" } else { &tried.family[2..] });
            }
            Line::Fact(fact) => {
                out.push_str(&std::mem::take(&mut columns).render(3));
                let mark = if fact.ok { "" } else { &paint("FAILED  ", Tone::Bad) };
                out.push_str(&format!("   {mark}{}\n", fact.text));
            }
        }
    }
    out.push_str(&columns.render(3));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::demo::script::{Act, Beat, STORY};

    fn answer(egress: serde_json::Value) -> serde_json::Value {
        serde_json::json!({ "verdict": "deny", "egress": egress, "ingress": null })
    }

    fn denied(family: &'static str) -> Tried {
        let said = answer(serde_json::json!({
            "verdict": "deny", "reason": "no rule of it fits", "decided_by": "tier-default",
            "tier": "default",
        }));
        let decisions = Decision::of(Side::Egress, "app-1", &said).into_iter().collect();
        Tried {
            from: "backend".into(),
            to: "cache".into(),
            port: 22,
            family,
            expected: Verdict::Deny,
            expected_deciders: Vec::new(),
            verdict: Verdict::Deny,
            socket: "timed out".into(),
            connected: false,
            decisions,
            ok: true,
        }
    }

    #[test]
    fn decisions_are_read_and_compared() {
        let said = answer(serde_json::json!({
            "verdict": "allow", "reason": "", "decided_by": "rule", "tier": "default",
            "policy": "shop/backend-egress", "rule": 1,
        }));
        let allowed = Decision::of(Side::Egress, "app-1", &said).expect("an egress side");
        assert!(allowed.allow && Decision::of(Side::Ingress, "app-1", &said).is_none());
        let end = &denied("ipv4").decisions[0];
        let tried = STORY.iter().flat_map(|scene| scene.beats).filter_map(|beat| match beat {
            Beat::Try(connections) => Some(*connections),
            Beat::Do(_) => None,
        });
        let deciders: Vec<&Decider> =
            tried.flatten().flat_map(|connection| connection.deciders).collect();
        assert!(deciders.iter().any(|decider| allowed.is(decider) && !end.is(decider)));
        assert!(deciders.iter().any(|decider| end.is(decider) && !allowed.is(decider)));
        assert!(deciders.iter().any(|decider| !end.is(decider) && !allowed.is(decider)));
        assert!(matches!(STORY[0].beats[0], Beat::Do(Act::StandUp)));
    }

    #[test]
    fn families_share_a_line_only_if_they_went_the_same_way() {
        let (v4, v6) = (denied("ipv4"), denied("ipv6"));
        let text = render(&[Line::Connection(v4.clone()), Line::Connection(v6.clone())]);
        assert_eq!(
            text,
            "   ok  backend -> cache  tcp 22  v4 v6  denied  timed out  app-1 egress  default  \
             no rule fits: end of tier\n"
        );
        let other = Tried { socket: "connected".into(), ok: false, ..v6 };
        let fact = Fact::new(false, "a fact");
        let text = render(&[Line::Connection(v4), Line::Connection(other), Line::Fact(fact)]);
        assert_eq!(text.lines().count(), 4);
        assert!(
            text.lines().nth(1).is_some_and(|line| line.contains("FAILED") && line.contains("v6"))
        );
        assert!(text.ends_with("   FAILED  a fact\n"));
    }
}
