use std::io;

use super::*;

#[test]
fn the_node_is_named_by_the_file_then_the_environment_then_the_host() {
    let configured = Config { node: Some("file".into()), ..Config::default() };
    let default = Config::default();
    let host = || Ok("Host.Example\n".to_owned());
    let from = |text: &str| Some(text.to_owned());
    assert_eq!(configured.node_name_from(from("env"), host).unwrap(), "file");
    assert_eq!(default.node_name_from(from("env"), host).unwrap(), "env");
    assert_eq!(default.node_name_from(from(""), host).unwrap(), "host.example");
    assert_eq!(default.node_name_from(None, host).unwrap(), "host.example");
    let error = default.node_name_from(from("a b"), host).unwrap_err().to_string();
    assert!(error.starts_with("`a b` (from NODE_NAME) can't be the name of a node"), "{error}");
    let unreadable = || Err(io::Error::from(io::ErrorKind::NotFound));
    let error = default.node_name_from(None, unreadable).unwrap_err();
    assert!(matches!(error, ConfigError::HostName(_)));
}

#[test]
fn workers_are_placed_on_the_cpus_of_the_list_or_on_the_last_ones() {
    let default = schema::Workers::default();
    assert_eq!(default.placement(2, &[0, 1, 2, 3]), [3, 2]);
    assert_eq!(default.placement(3, &[0, 1]), [1, 0, 1]);
    assert_eq!(default.placement(3, &[]), []);
    let listed = schema::Workers { cpus: Some("6,2-3".parse().unwrap()), ..default };
    assert_eq!(listed.placement(4, &[0, 1, 2, 3, 6]), [6, 2, 3, 6]);
    assert_eq!(listed.placement(2, &[0, 1, 2, 3]), [2, 3]);
    assert_eq!(listed.forbidden(&[0, 1, 2, 3]), [6]);
    assert_eq!(listed.placement(2, &[0, 1]), []);
    assert_eq!(listed.forbidden(&[2, 3, 6]), []);
}

#[test]
fn there_are_as_many_workers_as_said_or_as_cpus_are_listed() {
    let default = schema::Workers::default();
    assert_eq!(default.wanted(), None);
    let listed = schema::Workers { cpus: Some("6,2-3".parse().unwrap()), ..default };
    assert_eq!(listed.wanted(), Some(3));
    assert_eq!(schema::Workers { count: Some(2), ..listed }.wanted(), Some(2));
}
