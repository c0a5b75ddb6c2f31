//! Routes of others that share addresses with ours without having their
//! prefix: another overlay on the same ranges, most likely.
//!
//! A route to a part of a range wins over ours, and so does one of a table
//! that is asked before the main one. One to more than a range loses, which
//! matters to whom it belongs: told only of tunnels.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::RouteHeader;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleHeader, RuleMessage};
use tieline_dataplane::addr::Prefix;

use super::kernel::{Route, family};
use super::routes::{condition, way};
use super::socket::Refusal;
use super::{LinkError, Netlink};
use crate::state::{Condition, Severity};

const MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;
/// `RT_TABLE_LOCAL` of linux/rtnetlink.h: the node's own addresses.
const LOCAL: u32 = 255;

/// Devices that carry packets in other packets, by their kind.
const TUNNELS: [&str; 11] = [
    "vxlan",
    "geneve",
    "wireguard",
    "ipip",
    "ip6tnl",
    "sit",
    "gre",
    "gretap",
    "ip6gre",
    "ip6gretap",
    "tun",
];

/// Calico's own: what they lead to is of this cluster, and resolved with it.
const CALICO: [&str; 5] =
    ["vxlan.calico", "vxlan-v6.calico", "tunl0", "wireguard.cali", "wg-v6.cali"];

/// Whether a device is one of Calico's own tunnels.
pub(crate) fn is_calico(device: &str) -> bool {
    CALICO.contains(&device)
}

/// A rule that sends packets to a table, whatever they are.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    priority: u32,
    table: u32,
    /// Only those to this prefix.
    to: Option<Prefix>,
}

impl Rule {
    /// `None` for a rule that asks for more than a destination: who marks its
    /// packets, or picks them by device or source, does not mean all of them.
    fn read(message: &RuleMessage) -> Option<Self> {
        let header = &message.header;
        let mut rule = Self { priority: 0, table: header.table.into(), to: None };
        let mut suppressed = None;
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(priority) => rule.priority = *priority,
                RuleAttribute::Table(table) => rule.table = *table,
                RuleAttribute::Destination(ip) => rule.to = Prefix::new(*ip, header.dst_len),
                RuleAttribute::SuppressPrefixLen(len) => suppressed = Some(*len),
                // All ones: nothing is suppressed.
                RuleAttribute::SuppressIfGroup(u32::MAX)
                | RuleAttribute::Protocol(_)
                | RuleAttribute::L3MDev(false)
                | RuleAttribute::Other(_) => {}
                RuleAttribute::FwMark(0) | RuleAttribute::FwMask(0) => {}
                _ => return None,
            }
        }
        let all = header.action == RuleAction::ToTable
            && header.src_len == 0
            && header.tos == 0
            && !header.flags.contains(RuleFlags::Invert);
        // Without its default route the main table still has ours.
        let whole = match suppressed {
            None | Some(u32::MAX) => true,
            Some(0) => rule.table == MAIN,
            Some(_) => false,
        };
        (all && whole).then_some(rule)
    }
}

/// The rules whose tables are asked before the main one.
fn before_main(mut rules: Vec<Rule>) -> Vec<Rule> {
    rules.sort_by_key(|rule| rule.priority);
    let before = rules.into_iter().take_while(|rule| rule.table != MAIN || rule.to.is_some());
    before.filter(|rule| rule.table != LOCAL && rule.table != MAIN).collect()
}

/// How a route of another shares addresses with ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum How {
    /// It is to a part of a range.
    Part,
    /// It is to more than a range.
    More,
    /// Its table is asked before, because of the rule with this priority.
    Before(u32),
}

/// A route of another that shares addresses with some of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Overlap {
    how: How,
    pub(super) route: Route,
    /// One of our prefixes.
    with: Prefix,
    /// How many other pairs there are of that kind and that device.
    more: usize,
}

/// Our prefixes, to look for those that share addresses with another.
struct Ours<'a> {
    wanted: &'a BTreeMap<Prefix, Route>,
    /// Which lengths they have.
    lens: BTreeSet<u8>,
}

impl<'a> Ours<'a> {
    fn new(wanted: &'a BTreeMap<Prefix, Route>) -> Self {
        Self { wanted, lens: wanted.keys().map(Prefix::len128).collect() }
    }

    /// The longest that holds all of a prefix and more.
    fn around(&self, prefix: Prefix) -> Option<Prefix> {
        let offset = prefix.len128() - prefix.len();
        let lens = self.lens.range(offset..prefix.len128()).rev();
        let mut around = lens.filter_map(|len| Prefix::new(prefix.addr().to_ip(), len - offset));
        around.find(|around| self.wanted.contains_key(around))
    }

    /// Those within a prefix, which may be one of them.
    fn within(&self, prefix: Prefix) -> impl Iterator<Item = Prefix> + use<'a> {
        let within = self.wanted.range(prefix..).map(|(within, _)| *within);
        within.take_while(move |within| within.overlaps(&prefix))
    }
}

/// What of others overlaps ours; one of each kind and device, so that a
/// hundred routes of another overlay are one line.
fn overlaps(
    wanted: &BTreeMap<Prefix, Route>,
    main: &[Route],
    before: &[(Rule, Vec<Route>)],
    device: u32,
) -> Vec<Overlap> {
    let ours = Ours::new(wanted);
    let mut found: BTreeMap<(How, Option<u32>, u32), Overlap> = BTreeMap::new();
    let mut add = |how: How, route: &Route, with: Prefix, count: usize| {
        found
            .entry((how, route.device, route.table))
            .and_modify(|overlap| overlap.more += count)
            .or_insert(Overlap { how, route: route.clone(), with, more: count - 1 });
    };
    let others = |route: &&Route| !route.local && route.device != Some(device);
    for route in main.iter().filter(others) {
        // One with our own prefix takes its place, or loses.
        if wanted.contains_key(&route.prefix) {
            continue;
        }
        if let Some(around) = ours.around(route.prefix) {
            add(How::Part, route, around, 1);
        } else if route.prefix.len() > 1
            && let Some(first) = ours.within(route.prefix).next()
        {
            // A default route, or two halves of one, is no overlay's.
            add(How::More, route, first, ours.within(route.prefix).count());
        }
    }
    for (rule, routes) in before {
        for route in routes.iter().filter(others).filter(|route| route.unicast) {
            let around = ours.around(route.prefix);
            let mut with = around.into_iter().chain(ours.within(route.prefix));
            if let Some(with) = with.find(|with| rule.to.is_none_or(|to| to.overlaps(with))) {
                add(How::Before(rule.priority), route, with, 1);
            }
        }
    }
    found.into_values().collect()
}

impl Netlink {
    /// Others' routes that overlap ours, on another device than ours.
    pub(super) async fn overlaps(
        &self,
        wanted: &BTreeMap<Prefix, Route>,
        main: &[Route],
        device: u32,
    ) -> Result<Vec<Overlap>, LinkError> {
        let mut before = Vec::new();
        if !wanted.is_empty() {
            for v4 in [true, false] {
                for rule in before_main(self.rules(v4).await?) {
                    let mut routes = self.routes_in(rule.table).await?;
                    routes.retain(|route| route.prefix.is_v4() == v4);
                    before.push((rule, routes));
                }
            }
        }
        Ok(overlaps(wanted, main, &before, device))
    }

    /// What is wrong because of such a route, if anything.
    pub(super) async fn overlap_condition(
        &self,
        overlap: &Overlap,
    ) -> Result<Option<Condition>, LinkError> {
        let Overlap { how, route, with, more } = overlap;
        let link = match route.device {
            Some(index) => self.link_at(index).await?,
            None => None,
        };
        let kind = link.as_ref().and_then(|link| link.kind.as_deref()).unwrap_or_default();
        let name = link.as_ref().map(|link| link.name.as_str());
        if *how == How::More && (!TUNNELS.contains(&kind) || name.is_some_and(is_calico)) {
            return Ok(None);
        }
        let way = way(route, name);
        let more =
            if *more == 0 { String::new() } else { format!(" (and {more} more of this kind)") };
        let prefix = route.prefix;
        let (severity, message) = match how {
            How::Part => (
                Severity::Error,
                format!(
                    "is a part of the remote pod range {with}, and the node routes it {way}, so \
                     its packets do not reach the remote cluster{more}; remove that route (ip \
                     route del {prefix}) or stop what makes it"
                ),
            ),
            How::Before(priority) => (
                Severity::Error,
                format!(
                    "shares addresses with the remote pod range {with}, and the node routes it \
                     {way} by table {}, which is asked before the main one, so its packets do not \
                     reach the remote cluster{more}; remove that route, or the rule (ip rule del \
                     priority {priority})",
                    route.table
                ),
            ),
            How::More => (
                Severity::Warning,
                format!(
                    "another overlay has the remote pod range {with} too{more}: the node routes \
                     {prefix} {way}, but what goes to that range goes to the remote cluster now; \
                     take the range out of one of the two"
                ),
            ),
        };
        Ok(Some(condition(severity, prefix, message)))
    }

    async fn rules(&self, v4: bool) -> Result<Vec<Rule>, LinkError> {
        let any = if v4 { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
        let mut message = RuleMessage::default();
        message.header = RuleHeader { family: family(any), ..RuleHeader::default() };
        match self.requests.dump(RouteNetlinkMessage::GetRule(message)).await {
            Ok(answers) => {
                let rules = answers.iter().filter_map(|answer| match answer {
                    RouteNetlinkMessage::NewRule(message) => Rule::read(message),
                    _ => None,
                });
                Ok(rules.collect())
            }
            // A kernel without rules, or without the family.
            Err(Refusal::Errno(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::AFNOSUPPORT)) => {
                Ok(Vec::new())
            }
            Err(refusal) => Err(refusal.of("list routing rules")),
        }
    }
}

#[cfg(test)]
mod tests;
