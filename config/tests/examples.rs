//! The example files: they load, and the reference is complete.

use std::fs;
use std::path::{Path, PathBuf};

use tieline_config::Config;

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

#[test]
fn every_example_loads() {
    let mut seen = Vec::new();
    for entry in fs::read_dir(examples()).unwrap() {
        let path = entry.unwrap().path();
        Config::load(&path).unwrap();
        seen.push(path.file_name().unwrap().to_str().unwrap().to_owned());
    }
    seen.sort();
    assert_eq!(seen, ["federation.toml", "kubernetes.toml", "minimal.toml", "reference.toml"]);
}

/// The reference is written by the schema. After a change of the schema:
/// `TIELINE_WRITE_REFERENCE=1 cargo test -p tieline-config --test examples`
#[test]
fn the_reference_is_that_of_the_schema() {
    let path = examples().join("reference.toml");
    if std::env::var_os("TIELINE_WRITE_REFERENCE").is_some() {
        fs::write(&path, Config::reference()).unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), Config::reference());
    assert_eq!(Config::load(&path).unwrap(), Config::default());
}

#[test]
fn the_reference_names_and_explains_every_key() {
    let reference = Config::reference();
    // Uncommented, the examples are values that the daemon takes.
    let all: String = reference.lines().map(uncommented).map(|line| line + "\n").collect();
    let config = Config::parse(&all, Path::new("reference.toml")).unwrap();
    for key in config.keys() {
        assert!(key.value.is_some(), "{} is neither set nor shown", key.path);
        assert!(!key.doc.concat().trim().is_empty(), "{} is not explained", key.path);
    }
    for key in Config::default().keys().iter().filter(|key| key.value.is_none()) {
        assert!(key.doc.concat().contains("Default: "), "{} does not say its default", key.path);
    }
    assert!(reference.lines().all(|line| line.len() <= 100));
}

/// `# mtu = 1450` without its comment sign.
fn uncommented(line: &str) -> String {
    let bare = |name: &str| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
    match line.strip_prefix("# ").and_then(|rest| rest.split_once(" = ")) {
        Some((name, value)) if bare(name) => format!("{name} = {value}"),
        _ => line.to_owned(),
    }
}
