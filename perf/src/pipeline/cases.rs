//! The cases, and what each is held to.

use super::bench::Direction;

const FEW: usize = 64;
const MANY: usize = 60_000;
const MOST: usize = 1_000_000;

/// Rules per policy unless a case is about them.
pub(super) const RULES: usize = 100;
/// Known addresses.
pub(super) const ENDPOINTS: usize = 10_000;

/// What a case does with its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// The least that any router does.
    Floor,
    /// Packets of known flows.
    Hit(Direction),
    /// The first packet of every flow.
    First,
    /// The same in a table that many flows have come to and gone from.
    FirstAged,
    /// Known flows, while 100 endpoints and one policy change a second.
    Churn,
}

impl Work {
    /// Whether it is about first packets.
    pub(super) fn is_new(self) -> bool {
        matches!(self, Self::First | Self::FirstAged)
    }
}

/// One case, and what it is held to.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) work: Work,
    pub(super) flows: usize,
    pub(super) rules: usize,
    pub(super) v6: bool,
    /// Whether each flow's packets are counted, and all counts read once a second
    /// from another CPU.
    pub(super) counted: bool,
    /// Clocks, multiple of the floor, multiple of the base.
    pub(super) bars: [Option<f64>; 3],
    /// The case of as many flows that this one is a variant of.
    pub(super) base: Option<&'static str>,
    pub(super) peer: Option<(&'static str, f64)>,
}

const VPP: &str = "VPP 26.10, stateful ACL of 101 rules";
const VPP_DECAP: &str = "VPP 26.10, inner route, no ACL";

/// All cases.
pub(super) fn cases() -> Vec<Case> {
    let case = |name, work, flows| Case {
        name,
        work,
        flows,
        rules: RULES,
        v6: false,
        counted: false,
        bars: [None; 3],
        base: None,
        peer: None,
    };
    let encap = Work::Hit(Direction::Encap);
    let decap = Work::Hit(Direction::Decap);
    let bars = |clocks, floor| [Some(clocks), Some(floor), None];
    let base = |at_most| [None, None, Some(at_most)];
    let mut cases = vec![
        case("floor", Work::Floor, FEW),
        case("floor", Work::Floor, MANY),
        case("floor", Work::Floor, MOST),
        Case { bars: bars(80.0, 4.5), peer: Some((VPP, 170.0)), ..case("encap", encap, FEW) },
        Case { bars: bars(100.0, 4.0), peer: Some((VPP, 274.0)), ..case("encap", encap, MANY) },
        Case { bars: bars(160.0, 3.0), peer: Some((VPP, 317.0)), ..case("encap", encap, MOST) },
        Case { peer: Some((VPP_DECAP, 241.0)), ..case("decap", decap, FEW) },
        Case {
            bars: [Some(100.0), None, None],
            peer: Some((VPP_DECAP, 241.0)),
            ..case("decap", decap, MANY)
        },
        Case { bars: [Some(160.0), None, None], ..case("decap", decap, MOST) },
        Case {
            bars: [Some(850.0), None, None],
            peer: Some((VPP, 1200.0)),
            ..case("first-packet", Work::First, MOST)
        },
        Case {
            bars: base(1.1),
            base: Some("first-packet"),
            ..case("first-aged", Work::FirstAged, MOST)
        },
        Case { v6: true, bars: base(1.3), base: Some("encap"), ..case("encap-ipv6", encap, MANY) },
        Case { v6: true, bars: base(1.3), base: Some("decap"), ..case("decap-ipv6", decap, MANY) },
        Case { bars: base(1.15), base: Some("encap"), ..case("churn", Work::Churn, MANY) },
    ];
    for flows in [FEW, MANY, MOST] {
        for (name, base_name, work) in
            [("encap-counted", "encap", encap), ("decap-counted", "decap", decap)]
        {
            let base_of = Some(base_name);
            cases.push(Case {
                counted: true,
                bars: base(1.1),
                base: base_of,
                ..case(name, work, flows)
            });
        }
    }
    for rules in [10, 100, 1_000, 10_000] {
        let bars = if rules == 10 { [None; 3] } else { base(1.1) };
        let base = (rules != 10).then_some("first-by-rules");
        cases.push(Case { rules, bars, base, ..case("first-by-rules", Work::First, MANY) });
    }
    cases
}
