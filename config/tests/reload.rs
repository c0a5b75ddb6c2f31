//! The classification of keys, and what is taken over live.

use std::path::Path;

use tieline_config::{Config, Reload};

/// A valid configuration in which no key has its default, by key.
const OTHER: [(&str, &str); 43] = [
    ("node", "'n'"),
    ("datastore.kind", "'kubernetes'"),
    ("datastore.path", "'/other'"),
    ("datastore.remotes", "{ db = '/db' }"),
    ("datastore.kubeconfig", "'/kubeconfig'"),
    ("datastore.calico-group", "'projectcalico.org'"),
    ("datastore.rcc-group", "'example.org/v1'"),
    ("datastore.exec-plugins", "true"),
    ("datastore.answer-timeout-seconds", "5"),
    ("datastore.silence-timeout-seconds", "5"),
    ("overlay.scope", "'all'"),
    ("overlay.verify-checksum", "true"),
    ("overlay.udp6-checksum", "false"),
    ("underlay.devices", "['eth7']"),
    ("underlay.mode", "'packet'"),
    ("underlay.liveness-timeout-ms", "2000"),
    ("underlay.queues", "2"),
    ("gateway.device", "'gw0'"),
    ("gateway.peer", "'gw1'"),
    ("gateway.mtu", "1400"),
    ("gateway.route-protocol", "134"),
    ("workers.count", "2"),
    ("workers.cpus", "'1'"),
    ("workers.idle", "'busy'"),
    ("workers.batch", "32"),
    ("workers.frames", "4096"),
    ("workers.frame-size", "4096"),
    ("flow-table.entries", "1024"),
    ("flow-table.counters", "false"),
    ("flow-table.timeouts.tcp-syn-seconds", "61"),
    ("flow-table.timeouts.tcp-established-seconds", "61"),
    ("flow-table.timeouts.tcp-closing-seconds", "61"),
    ("flow-table.timeouts.udp-seconds", "61"),
    ("flow-table.timeouts.udp-replied-seconds", "61"),
    ("flow-table.timeouts.icmp-seconds", "61"),
    ("flow-table.timeouts.other-seconds", "61"),
    ("flow-table.timeouts.fragments-seconds", "61"),
    ("federation.stale", "'withdraw'"),
    ("federation.stale-after-seconds", "61"),
    ("felix.mirror", "'off'"),
    ("felix.pools", "'off'"),
    ("admin.socket", "'/s'"),
    ("admin.metrics", "'[::1]:9095'"),
];
const OTHER_LOG: [(&str, &str); 2] = [("log.level", "'trace'"), ("log.format", "'json'")];

/// Keys that a running daemon takes over; all others need a restart.
const LIVE: [&str; 10] = [
    "datastore.remotes",
    "overlay.scope",
    "overlay.verify-checksum",
    "overlay.udp6-checksum",
    "federation.stale",
    "federation.stale-after-seconds",
    "felix.mirror",
    "felix.pools",
    "log.level",
    "log.format",
];

fn parse(text: &str) -> Config {
    Config::parse(text, Path::new("test.toml")).unwrap()
}

fn other_keys() -> impl Iterator<Item = (&'static str, &'static str)> {
    OTHER.into_iter().chain(OTHER_LOG)
}

/// A key that is added to the schema must be added here with another value.
#[test]
fn a_change_of_any_one_key_is_seen_as_that_key_and_nothing_else() {
    let default = Config::default();
    let mut seen = Vec::new();
    for (key, value) in other_keys() {
        let changes = default.diff(&parse(&format!("{key} = {value}")));
        let [change] = changes.as_slice() else { panic!("{key}: {changes:?}") };
        assert_eq!(change.key, key);
        assert_eq!(change.live, LIVE.contains(&key), "{key}");
        assert!(change.new.is_some(), "{key}");
        seen.push(key);
    }
    let all: Vec<String> = default.keys().into_iter().map(|key| key.path).collect();
    let unchanged: Vec<&String> = all.iter().filter(|key| !seen.contains(&key.as_str())).collect();
    assert_eq!(unchanged, [""; 0]);
    assert_eq!(all.len(), seen.len());
}

#[test]
fn live_keys_are_taken_over_and_only_they() {
    let text: String = other_keys().map(|(key, value)| format!("{key} = {value}\n")).collect();
    let (old, new) = (Config::default(), parse(&text));
    let merged = old.with_live_of(&new);
    let names = |a: &Config, b: &Config| -> Vec<String> {
        a.diff(b).into_iter().map(|change| change.key).collect()
    };
    assert_eq!(names(&old, &merged), LIVE);
    assert!(merged.diff(&new).iter().all(|change| !change.live));
    assert_eq!(names(&merged, &new).len(), OTHER.len() + OTHER_LOG.len() - LIVE.len());
    assert_eq!(new.diff(&new), []);
    assert_eq!(merged.validate(), Ok(()));
}

#[test]
fn changes_read_well() {
    let new = parse("gateway.mtu = 1400\n[log]\nlevel = 'debug'\n");
    let text: Vec<String> = Config::default().diff(&new).iter().map(ToString::to_string).collect();
    assert_eq!(
        text,
        ["gateway.mtu: (unset) -> 1400, at the next start", "log.level: \"info\" -> \"debug\""]
    );
}

/// What is written is what was said: no field is serialized under a name
/// other than the one that the description has for it.
#[test]
fn the_description_names_the_keys_as_the_file_does() {
    let text: String = other_keys().map(|(key, value)| format!("{key} = {value}\n")).collect();
    let config = parse(&text);
    let written = toml::Table::try_from(&config).unwrap();
    let mut leaves = Vec::new();
    leaves_of(&written, "", &mut leaves);
    let mut described: Vec<(String, toml::Value)> =
        config.keys().into_iter().filter_map(|key| Some((key.path, key.value?))).collect();
    leaves.sort_by(|a, b| a.0.cmp(&b.0));
    described.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(leaves, described);
    assert_eq!(described.len(), config.keys().len());
    assert!(config.keys().iter().any(|key| key.reload == Reload::Live));
}

fn leaves_of(table: &toml::Table, prefix: &str, leaves: &mut Vec<(String, toml::Value)>) {
    for (name, value) in table {
        let path = format!("{prefix}{name}");
        match value {
            // A map of names that the user chooses is one key.
            toml::Value::Table(inner) if path != "datastore.remotes" => {
                leaves_of(inner, &format!("{path}."), leaves);
            }
            _ => leaves.push((path, value.clone())),
        }
    }
}
