use std::path::Path;

use crate::{Config, ConfigError};

fn errors(text: &str) -> String {
    match Config::parse(text, Path::new("t.toml")) {
        Err(error @ ConfigError::Invalid { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

/// Each line is `FILE:LINE:COLUMN: KEY: MESSAGE; REMEDY`, and begins so.
#[track_caller]
fn complains(text: &str, lines: &[&str]) {
    let errors = errors(text);
    let found: Vec<&str> = errors.lines().collect();
    assert_eq!(found.len(), lines.len(), "{errors}");
    for (found, line) in found.iter().zip(lines) {
        assert!(found.starts_with(&format!("t.toml:{line}")), "wanted {line}, got\n{errors}");
    }
}

#[test]
fn nothing_is_a_valid_configuration() {
    assert_eq!(Config::parse("", Path::new("t.toml")).unwrap(), Config::default());
    assert_eq!(Config::default().validate(), Ok(()));
}

#[test]
fn everything_wrong_is_reported_at_once_and_in_order() {
    complains(
        "nod = 'a'\n\
         [workers]\n\
         batch = 0\n\
         idle = 'lazy'\n\
         frames = \"many\"\n\
         cpus = '3-2'\n\
         [underlay]\n\
         devices = ['eth0', 7]\n\
         liveness-timeout-ms = 1\n\
         [overlay]\n\
         verify_checksum = true\n\
         [flow-table.timeouts]\n\
         udp-seconds = -1\n\
         icmp-seconds = 0\n",
        &[
            "1:1: nod: unknown field `nod`, expected one of `node`, `datastore`, ",
            "3:9: workers.batch: 0 is out of range; choose 1 to 256",
            "4:8: workers.idle: unknown variant `lazy`, expected one of `busy`, `adaptive`, \
             `sleep`; workers.idle is: What a worker does when there are no packets",
            "5:10: workers.frames: invalid type: string \"many\", expected u32; ",
            "6:8: workers.cpus: the range of CPUs `3-2` ends before it begins; ",
            "8:20: underlay.devices: invalid type: integer `7`, expected a string; ",
            "9:23: underlay.liveness-timeout-ms: 1 is out of range; choose 500 to 60000",
            "11:1: overlay.verify_checksum: unknown field `verify_checksum`, expected one of ",
            "13:15: flow-table.timeouts.udp-seconds: invalid value: integer `-1`, expected u32; ",
            "14:16: flow-table.timeouts.icmp-seconds: 0 is out of range; choose 1 to 2592000",
        ],
    );
}

#[test]
fn what_is_no_toml_is_refused_wherever_it_breaks() {
    complains("[workers\n", &["1:9: not TOML: "]);
    complains("a = 1\na = 2\n", &["2:1: not TOML: duplicate key"]);
    complains("\u{e9} = 1\n", &["1:1: not TOML: "]);
    complains("x = [[[[", &["1:9: not TOML: "]);
}

#[test]
fn sections_and_values_are_told_apart() {
    complains("workers = 3\n", &["1:11: workers: invalid type: integer `3`, expected struct"]);
    complains("[node]\nname = 'a'\n", &["1:1: node: invalid type: map, expected a string"]);
    complains(
        "[datastore.remotes]\ndb = 3\n",
        &["2:6: datastore.remotes.db: invalid type: integer `3`, expected path string"],
    );
    complains("[gate-way]\n", &["1:2: gate-way: unknown field"]);
}

#[test]
fn values_are_checked_against_each_other() {
    complains(
        "[gateway]\ndevice = 'gw'\npeer = 'gw'\nmtu = 3000\nroute-protocol = 80\n",
        &[
            "3:8: gateway.peer: the two ends of the gateway have the same name",
            "4:7: gateway.mtu: a frame of 2048 bytes holds packets of 1708 at most; \
             set workers.frame-size to 4096",
            "5:18: gateway.route-protocol: route protocol 80 is taken (Calico's Felix)",
        ],
    );
    let roomy = "[gateway]\nmtu = 3000\n[workers]\nframe-size = 4096\n";
    assert!(Config::parse(roomy, Path::new("t.toml")).is_ok());
    complains("gateway.mtu = 1279", &["1:15: gateway.mtu: 1279 is out of range"]);
    complains("gateway.mtu = 3757", &["1:15: gateway.mtu: 3757 is out of range"]);
    complains("gateway.route-protocol = 4", &["1:26: gateway.route-protocol: route protocol 4"]);
    complains(
        "[underlay]\ndevices = ['tieline0', 'a/b', 'eth0', 'eth0']\n",
        &[
            "2:11: underlay.devices: \"a/b\" can't be the name of a device",
            "2:11: underlay.devices: \"eth0\" is named twice",
            "2:11: underlay.devices: the gateway can't be the underlay",
        ],
    );
    complains(
        "[workers]\nframes = 5000\nbatch = 256\nframe-size = 3000\n",
        &[
            "2:10: workers.frames: 5000 is not a power of two; choose such as 8192",
            "4:14: workers.frame-size: frames can't have 3000 bytes; choose 2048 or 4096",
        ],
    );
    complains("workers.count = 0", &["1:17: workers.count: 0 is out of range; choose 1 to 256"]);
    complains("workers.count = 257", &["1:17: workers.count: 257 is out of range"]);
    assert!(Config::parse("workers.count = 256", Path::new("t.toml")).is_ok());
    complains(
        "[workers]\nframes = 1024\nbatch = 256\n",
        &["2:10: workers.frames: 1024 frames do not feed batches of 256"],
    );
    // The default is the problem then, so the section is the place.
    complains(
        "[workers]\nbatch = 9999\n",
        &[
            "1:2: workers.frames: 8192 frames do not feed batches of 9999",
            "2:9: workers.batch: 9999 is out of range",
        ],
    );
    complains(
        "workers.frames = 4294967295",
        &[
            "1:18: workers.frames: 4294967295 is out of range",
            "1:18: workers.frames: 4294967295 is not a power of two; choose such as 1048576",
        ],
    );
}

#[test]
fn paths_are_checked() {
    complains(
        "[datastore]\n\
         path = 'clusters/local'\n\
         [datastore.remotes]\n\
         a = '/clusters/a'\n\
         b = '/clusters//a/.'\n\
         'B b' = 'clusters/local'\n",
        &[
            "2:8: datastore.path: \"clusters/local\" is not an absolute path",
            "5:5: datastore.remotes.b: this is the directory of the remote cluster \"a\" too",
            "6:9: datastore.remotes.\"B b\": \"B b\" can't be the name of a Remote",
            "6:9: datastore.remotes.\"B b\": \"clusters/local\" is not an absolute path",
            "6:9: datastore.remotes.\"B b\": this is the directory of the local cluster",
        ],
    );
    complains("admin.socket = 'tieline.sock'", &["1:16: admin.socket: \"tieline.sock\" is not"]);
    complains("datastore.path = \"/a\\u0000b\"", &["1:18: datastore.path: a path can't hold"]);
    let long = format!("admin.socket = '/{}'", "s".repeat(107));
    complains(&long, &["1:16: admin.socket: a path of 108 bytes is too long for a socket"]);
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let absent = directory.path().join("absent.toml");
    let error = Config::load(&absent).unwrap_err().to_string();
    assert!(error.starts_with(absent.to_str().unwrap()), "{error}");
    assert!(matches!(Config::load(directory.path()), Err(ConfigError::Read { .. })));
    let binary = directory.path().join("binary.toml");
    std::fs::write(&binary, [0xff, 0xfe]).unwrap();
    assert!(matches!(Config::load(&binary), Err(ConfigError::Read { .. })));
}

/// The parser meets whatever a file holds: truncated, doubled, shifted.
#[test]
fn no_text_makes_it_panic() {
    let reference = Config::reference().replace("# ", "");
    let text = reference.as_str();
    for (end, _) in text.char_indices().step_by(7) {
        let _ = Config::parse(&text[..end], Path::new("t.toml"));
        let _ = Config::parse(&text[end..], Path::new("t.toml"));
    }
    let deep = format!("x = {}", "[".repeat(100_000));
    assert!(Config::parse(&deep, Path::new("t.toml")).is_err());
    let sections = format!("[{}a]", "a.".repeat(50_000));
    assert!(Config::parse(&sections, Path::new("t.toml")).is_err());
}

#[test]
fn a_node_has_the_name_of_a_kubernetes_object() {
    complains("node = 'Node_A'", &["1:8: node: \"Node_A\" can't be the name of a node"]);
    complains("node = ''", &["1:8: node: \"\" can't be"]);
    assert!(Config::parse("node = 'node-a.example.org'", Path::new("t.toml")).is_ok());
}
