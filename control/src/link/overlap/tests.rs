use super::*;

const GATEWAY: u32 = 4;

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn route(text: &str, device: u32) -> Route {
    Route {
        prefix: prefix(text),
        table: MAIN,
        protocol: 3,
        unicast: true,
        local: false,
        onlink: false,
        device: Some(device),
        next_hop: None,
        source: None,
        mtu: None,
        metric: 0,
    }
}

fn wanted(texts: &[&str]) -> BTreeMap<Prefix, Route> {
    texts.iter().map(|text| (prefix(text), route(text, GATEWAY))).collect()
}

fn rule(priority: u32, table: u32, to: Option<&str>) -> Rule {
    Rule { priority, table, to: to.map(prefix) }
}

fn found(overlaps: &[Overlap]) -> Vec<(How, String, String, usize)> {
    let words = |it: &Overlap| (it.how, it.route.prefix.to_string(), it.with.to_string(), it.more);
    overlaps.iter().map(words).collect()
}

#[test]
fn parts_and_more_are_told_apart() {
    let wanted = wanted(&["10.60.0.0/26", "10.60.0.64/26", "10.60.0.5", "fd00:60::/122"]);
    let main = [
        route("0.0.0.0/0", 2),
        route("128.0.0.0/1", 2),
        route("10.0.0.0/8", 7),
        // Inside what is ours alone.
        route("10.60.0.8/29", 8),
        route("10.60.0.72/29", 8),
        route("10.60.0.16/29", 9),
        // In the place of ours: not for here.
        route("10.60.0.5", 8),
        route("10.61.0.0/16", 8),
        route("fd00:60::8/125", 8),
        route("fd00:60::/48", 7),
        Route { local: true, ..route("10.60.0.9", 1) },
        route("10.60.0.32/28", GATEWAY),
    ];
    let overlaps = overlaps(&wanted, &main, &[], GATEWAY);
    assert_eq!(
        found(&overlaps),
        [
            (How::Part, "10.60.0.8/29".into(), "10.60.0.0/26".into(), 2),
            (How::Part, "10.60.0.16/29".into(), "10.60.0.0/26".into(), 0),
            (How::More, "10.0.0.0/8".into(), "10.60.0.0/26".into(), 3),
        ]
    );
}

#[test]
fn tables_count_that_are_asked_before_the_main_one() {
    let rules = vec![
        rule(32767, 253, None),
        rule(32766, MAIN, None),
        rule(150, 150, Some("10.60.0.0/16")),
        rule(149, 149, None),
        rule(100, MAIN, Some("10.9.0.0/16")),
        rule(0, LOCAL, None),
    ];
    let before = before_main(rules);
    assert_eq!(before, [rule(149, 149, None), rule(150, 150, Some("10.60.0.0/16"))]);
    let wanted = wanted(&["10.60.0.0/26", "10.70.0.0/26"]);
    let blackhole = Route { unicast: false, ..route("10.60.0.0/24", 8) };
    let tables = [
        (before[0].clone(), vec![blackhole, route("10.60.0.0/26", 8)]),
        (before[1].clone(), vec![route("0.0.0.0/0", 9), route("10.70.0.0/26", 10)]),
    ];
    assert_eq!(
        found(&overlaps(&wanted, &[], &tables, GATEWAY)),
        [
            (How::Before(149), "10.60.0.0/26".into(), "10.60.0.0/26".into(), 0),
            (How::Before(150), "0.0.0.0/0".into(), "10.60.0.0/26".into(), 0),
        ]
    );
}

#[test]
fn rules_that_pick_packets_are_passed_over() {
    let message = |attributes: &[RuleAttribute]| {
        let mut message = RuleMessage::default();
        message.header.action = RuleAction::ToTable;
        message.attributes = [RuleAttribute::Priority(9), RuleAttribute::Table(500)].into();
        message.attributes.extend(attributes.iter().cloned());
        message
    };
    let read = |attributes: &[RuleAttribute]| Rule::read(&message(attributes));
    assert_eq!(read(&[RuleAttribute::SuppressPrefixLen(u32::MAX)]), Some(rule(9, 500, None)));
    assert_eq!(read(&[RuleAttribute::FwMark(1), RuleAttribute::FwMask(1)]), None);
    assert_eq!(read(&[RuleAttribute::Iifname("eth0".into())]), None);
    assert_eq!(read(&[RuleAttribute::SuppressPrefixLen(0)]), None);
    let mut main = message(&[RuleAttribute::SuppressPrefixLen(0)]);
    main.attributes.push(RuleAttribute::Table(MAIN));
    assert_eq!(Rule::read(&main), Some(rule(9, MAIN, None)));
    let mut inverted = message(&[]);
    inverted.header.flags = RuleFlags::Invert;
    assert_eq!(Rule::read(&inverted), None);
    let mut from = message(&[]);
    from.header.src_len = 16;
    assert_eq!(Rule::read(&from), None);
    let mut to = message(&[RuleAttribute::Destination([10, 60, 0, 0].into())]);
    to.header.dst_len = 16;
    assert_eq!(Rule::read(&to), Some(rule(9, 500, Some("10.60.0.0/16"))));
}
