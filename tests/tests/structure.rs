//! What holds for the source as a whole: who may depend on whom, what the packet
//! path must not pull in, where `unsafe` may stand, how long a file may be.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use serde_json::Value;

/// Which of our crates a crate may depend on. All others are reached by way of
/// the crates above them.
const MAY_USE: [(&str, &[&str]); 7] = [
    ("tieline-xsk", &[]),
    ("tieline-dataplane", &["tieline-xsk"]),
    ("tieline-config", &[]),
    ("tieline-lab", &[]),
    ("tieline", &["tieline-dataplane", "tieline-config", "tieline-lab"]),
    ("tieline-perf", &["tieline-dataplane", "tieline-xsk", "tieline-config", "tieline-lab"]),
    (
        "tieline-tests",
        &[
            "tieline",
            "tieline-config",
            "tieline-dataplane",
            "tieline-lab",
            "tieline-perf",
            "tieline-xsk",
        ],
    ),
];

/// What has no place on the packet path: async, serialization, logging, and
/// whatever knows of Kubernetes. (`log` is missing because mio has it as a
/// feature, which others in the workspace turn on.)
const NOT_IN_DATAPLANE: [&str; 7] =
    ["tokio", "futures-core", "serde", "serde_core", "kube", "k8s-openapi", "tracing"];

/// The only crate that may use `unsafe`.
const UNSAFE: &str = "tieline-xsk";

/// Lines of a file: beyond the first it is named, beyond the second refused.
/// Tables of test cases are as long as there are cases: `tests.rs` is only named.
const LONG: usize = 500;
const TOO_LONG: usize = 700;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// `cargo metadata` for this machine's kind, so that crates of other platforms
/// need not be there.
fn metadata() -> Value {
    let rustc = Command::new(env::var("RUSTC").unwrap_or("rustc".into())).arg("-vV").output();
    let rustc = String::from_utf8(rustc.unwrap().stdout).unwrap();
    let host = rustc.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--filter-platform", host])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

/// Our packages, by name.
fn ours(metadata: &Value) -> BTreeMap<&str, &Value> {
    let members: BTreeSet<&str> = list(&metadata["workspace_members"]).iter().map(text).collect();
    let packages = list(&metadata["packages"]).iter();
    let ours = packages.filter(|package| members.contains(text(&package["id"])));
    ours.map(|package| (text(&package["name"]), package)).collect()
}

#[test]
fn dependencies_point_one_way() {
    let metadata = metadata();
    let ours = ours(&metadata);
    let rules = BTreeMap::from(MAY_USE);
    let known: Vec<&&str> = rules.keys().collect();
    assert_eq!(ours.keys().collect::<Vec<_>>(), known, "each of our crates needs a rule");
    for (name, package) in &ours {
        for dependency in list(&package["dependencies"]) {
            let used = text(&dependency["name"]);
            // Tests of any crate may use the test bed.
            let test = dependency["kind"] == "dev" && used == "tieline-lab";
            let allowed = !ours.contains_key(used) || rules[name].contains(&used) || test;
            assert!(allowed, "{name} must not depend on {used}");
        }
    }
}

#[test]
fn the_pipeline_builds_without_sockets() {
    let metadata = metadata();
    let dataplane = ours(&metadata)["tieline-dataplane"];
    let xsk = list(&dataplane["dependencies"]).iter().find(|dep| dep["name"] == UNSAFE).unwrap();
    assert_eq!(xsk["optional"], true);
}

#[test]
fn the_packet_path_pulls_in_nothing_that_waits_or_talks() {
    let metadata = metadata();
    let packages = list(&metadata["packages"]).iter();
    let names: BTreeMap<&str, &str> =
        packages.map(|package| (text(&package["id"]), text(&package["name"]))).collect();
    let nodes: BTreeMap<&str, &Value> =
        list(&metadata["resolve"]["nodes"]).iter().map(|node| (text(&node["id"]), node)).collect();
    // From each crate to the one that brought it in.
    let mut from: BTreeMap<&str, &str> = BTreeMap::new();
    let mut open = vec![text(&ours(&metadata)["tieline-dataplane"]["id"])];
    while let Some(id) = open.pop() {
        for dependency in list(&nodes[id]["deps"]) {
            let normal = list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
            let used = text(&dependency["pkg"]);
            if normal && !from.contains_key(used) {
                from.insert(used, id);
                open.push(used);
            }
        }
    }
    let tree: BTreeSet<&str> = from.keys().map(|id| names[id]).collect();
    assert!(tree.contains("ahash"), "the walk found {tree:?}");
    for name in NOT_IN_DATAPLANE {
        assert!(!tree.contains(name), "tieline-dataplane must not depend on {name}: {tree:?}");
    }
}

#[test]
fn every_other_crate_forbids_unsafe_code_at_its_root() {
    let metadata = metadata();
    let mut roots = 0;
    for (name, package) in ours(&metadata) {
        for target in list(&package["targets"]) {
            let kinds = list(&target["kind"]);
            let shipped = kinds.iter().any(|kind| kind == "lib" || kind == "bin");
            if name != UNSAFE && shipped {
                let path = text(&target["src_path"]);
                let source = fs::read_to_string(path).unwrap();
                let forbids = source.lines().any(|line| line.trim() == "#![forbid(unsafe_code)]");
                assert!(forbids, "{path} must begin with #![forbid(unsafe_code)]");
                roots += 1;
            }
        }
    }
    assert!(roots >= MAY_USE.len() - 1, "found {roots} roots only");
}

#[test]
fn unsafe_stands_in_one_crate_only() {
    let home = root().join("dataplane/xsk");
    let mut at_home = 0;
    for path in sources() {
        let source = fs::read_to_string(&path).unwrap();
        for (number, line) in source.lines().enumerate().filter(|(_, line)| is_unsafe(line)) {
            let place = format!("{}:{}", path.display(), number + 1);
            assert!(path.starts_with(&home), "{place}: unsafe outside of dataplane/xsk: {line}");
            at_home += 1;
        }
    }
    println!("{at_home} lines with unsafe in dataplane/xsk");
}

/// Whether a line of code has the keyword; not comments, nor names that hold
/// the word.
fn is_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices("unsafe").any(|(at, found)| {
        let before = code[..at].chars().next_back();
        let rest = &code[at + found.len()..];
        let whole = !before.is_some_and(word) && !rest.starts_with(word);
        let keyword = ["{", "fn ", "impl", "extern", "trait", "("];
        let rest = rest.trim_start();
        whole && (rest.is_empty() || keyword.iter().any(|next| rest.starts_with(next)))
    })
}

#[test]
fn unsafe_is_told_from_talk_about_it() {
    for code in [
        concat!("    let a = unsafe", " { *p };"),
        concat!("unsafe", " impl Send for A {}"),
        concat!("pub unsafe", " fn a() {"),
        concat!("    unsafe", "{ a() }"),
        concat!("#[unsafe", "(no_mangle)]"),
        concat!("    let b = unsafe", ""),
    ] {
        assert!(is_unsafe(code), "{code}");
    }
    for code in [
        concat!("// unsafe", " { *p }"),
        "#![forbid(unsafe_code)]",
        "    let unsafety = not_unsafe(1);",
        "    \"setns without unsafe code\"",
    ] {
        assert!(!is_unsafe(code), "{code}");
    }
}

#[test]
fn no_file_is_too_long() {
    let mut refused = Vec::new();
    for path in sources() {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        if lines > LONG {
            println!("{lines:5} lines: {}", path.display());
        }
        if lines > TOO_LONG && !path.ends_with("tests.rs") {
            refused.push(format!("{} has {lines} lines", path.display()));
        }
    }
    assert!(refused.is_empty(), "more than {TOO_LONG} lines: {refused:#?}");
}

/// All Rust files of the repository, those of crates outside the workspace
/// included.
fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && !path.is_symlink() {
                // Hidden folders hold settings, `target` what is built.
                if !name.starts_with('.') && name != "target" {
                    open.push(path);
                }
            } else if name.ends_with(".rs") {
                found.push(path);
            }
        }
    }
    assert!(found.len() > 20, "found only {} files in {}", found.len(), root().display());
    found.sort();
    found
}
