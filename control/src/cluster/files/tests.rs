use proptest::prelude::*;

use super::*;

fn empty() -> Loaded {
    Loaded::new(ClusterId::Local)
}

fn bytes(text: &str) -> Content {
    Content::Bytes(text.as_bytes().to_vec())
}

fn files(all: &[(&str, &str)]) -> Files {
    all.iter().map(|(path, text)| ((*path).to_owned(), bytes(text))).collect()
}

/// A namespace with a label, to tell versions apart.
fn namespace(name: &str, version: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{v: '{version}'}}}}\n"
    )
}

/// A namespace whose labels can't be read.
fn broken(name: &str) -> String {
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: 1}}\n")
}

/// Namespaces in force, with their versions.
fn in_force(loaded: &Loaded) -> Vec<String> {
    let namespaces = loaded.view().objects.namespaces.iter();
    namespaces.map(|(name, labels)| format!("{name} {}", labels["v"])).collect()
}

fn told(loaded: &Loaded) -> Vec<String> {
    let conditions = loaded.view().conditions.iter();
    conditions.map(|condition| format!("{}: {}", condition.object, condition.message)).collect()
}

#[test]
fn files_add_up() {
    let both = files(&[("a.yaml", &namespace("x", "1")), ("b/c.json", &namespace("y", "2"))]);
    let loaded = load(&empty(), both);
    assert_eq!(in_force(&loaded), ["x 1", "y 2"]);
    assert_eq!(told(&loaded), [""; 0]);
    let loaded = load(&loaded, files(&[("b/c.json", &namespace("y", "3"))]));
    assert_eq!(in_force(&loaded), ["y 3"]);
}

#[test]
fn a_broken_object_keeps_its_last_good_version() {
    let loaded =
        load(&empty(), files(&[("a.yaml", &(namespace("x", "1") + &namespace("y", "1")))]));
    let loaded = load(&loaded, files(&[("a.yaml", &(broken("x") + &namespace("y", "2")))]));
    assert_eq!(in_force(&loaded), ["x 1", "y 2"]);
    let message = "Namespace x: a.yaml document 1: metadata.labels: is a number; write a map; its \
                   last good version stays in force";
    assert_eq!(told(&loaded), [message]);
    assert_eq!(loaded.view().conditions[0].severity, Severity::Error);
    // Still broken, in another way.
    let loaded = load(&loaded, files(&[("a.yaml", &(namespace("y", "3") + &broken("x")))]));
    assert_eq!(in_force(&loaded), ["x 1", "y 3"]);
    let loaded = load(&loaded, files(&[("a.yaml", &(namespace("x", "4")))]));
    assert_eq!(in_force(&loaded), ["x 4"]);
    assert_eq!(told(&loaded), [""; 0]);
    let loaded = load(&loaded, files(&[("a.yaml", &broken("x"))]));
    let loaded = load(&loaded, files(&[("a.yaml", "")]));
    assert_eq!(in_force(&loaded), [""; 0], "deleted at last");
}

#[test]
fn a_broken_object_without_a_good_version_is_not_in_force() {
    let loaded = load(&empty(), files(&[("a.yaml", &(broken("x") + &namespace("y", "1")))]));
    assert_eq!(in_force(&loaded), ["y 1"]);
    assert_eq!(
        told(&loaded),
        [
            "Namespace x: a.yaml document 1: metadata.labels: is a number; write a map; it is not in \
         force"
        ]
    );
}

#[test]
fn an_object_without_a_name_may_be_any_that_is_lost() {
    let loaded =
        load(&empty(), files(&[("a.yaml", &(namespace("x", "1") + &namespace("y", "1")))]));
    let nameless = "---\napiVersion: v1\nkind: Namespace\nmetadata: {labels: {v: '2'}}\n";
    let loaded = load(&loaded, files(&[("a.yaml", &(nameless.to_owned() + &namespace("y", "2")))]));
    assert_eq!(in_force(&loaded), ["x 1", "y 2"]);
    assert_eq!(
        told(&loaded),
        ["v1 Namespace: a.yaml document 1: metadata.name: is missing; set it"]
    );
}

#[test]
fn a_broken_file_keeps_all_that_it_held() {
    let good =
        [("a.yaml", namespace("x", "1") + &namespace("y", "1")), ("b.yaml", namespace("z", "1"))];
    let good: Vec<_> = good.iter().map(|(path, text)| (*path, text.as_str())).collect();
    let loaded = load(&empty(), files(&good));
    let loaded = load(&loaded, files(&[("a.yaml", "a: ["), ("b.yaml", &namespace("z", "2"))]));
    assert_eq!(in_force(&loaded), ["x 1", "y 1", "z 2"]);
    assert_eq!(
        told(&loaded),
        [
            "file a.yaml: a.yaml: is no valid YAML or JSON: unclosed bracket '[' at line 1, column 4; \
         correct it there; the 2 objects that it last held stay in force"
        ]
    );
    let mut unreadable = files(&[("b.yaml", &namespace("z", "3"))]);
    let error = ManifestError::Unreadable { reason: "permission denied".into() };
    unreadable.insert("a.yaml".into(), Content::Unreadable(error));
    let loaded = load(&loaded, unreadable);
    assert_eq!(in_force(&loaded), ["x 1", "y 1", "z 3"]);
    assert_eq!(
        told(&loaded),
        ["file a.yaml: a.yaml: can't be read: permission denied; check its permissions; the 2 \
         objects that it last held stay in force"]
    );
    let loaded = load(&loaded, files(&[("a.yaml", &namespace("y", "5"))]));
    assert_eq!(in_force(&loaded), ["y 5"]);
}

#[test]
fn a_file_broken_from_the_start_holds_nothing() {
    let loaded = load(&empty(), files(&[("a.yaml", "a: ["), ("b.yaml", &namespace("z", "2"))]));
    assert_eq!(in_force(&loaded), ["z 2"]);
    assert!(told(&loaded)[0].ends_with("; nothing of it is in force"), "{:?}", told(&loaded));
}

#[test]
fn the_first_of_two_files_wins() {
    let both = || files(&[("b.yaml", &namespace("x", "b")), ("a.yaml", &namespace("x", "a"))]);
    let loaded = load(&empty(), both());
    assert_eq!(in_force(&loaded), ["x a"]);
    let message = "Namespace x: b.yaml document 1: is written in a.yaml already, which is in force; \
                   remove one of the two";
    assert_eq!(told(&loaded), [message]);
    // Also when the other was there first.
    let loaded = load(&empty(), files(&[("b.yaml", &namespace("x", "b"))]));
    let loaded = load(&loaded, both());
    assert_eq!(in_force(&loaded), ["x a"]);
    let loaded = load(&loaded, files(&[("b.yaml", &namespace("x", "b"))]));
    assert_eq!((in_force(&loaded), told(&loaded)), (vec!["x b".to_owned()], vec![]));
}

#[test]
fn the_first_of_two_documents_wins() {
    let loaded =
        load(&empty(), files(&[("a.yaml", &(namespace("x", "1") + &namespace("x", "2")))]));
    assert_eq!(in_force(&loaded), ["x 1"]);
    assert_eq!(
        told(&loaded),
        ["Namespace x: a.yaml document 2: is written in document 1 already, which is in force; \
         remove one of the two"]
    );
}

#[test]
fn a_good_version_beats_a_kept_one() {
    let loaded = load(&empty(), files(&[("a.yaml", &namespace("x", "a"))]));
    let loaded =
        load(&loaded, files(&[("a.yaml", &broken("x")), ("b.yaml", &namespace("x", "b"))]));
    assert_eq!(in_force(&loaded), ["x b"]);
    assert_eq!(told(&loaded).len(), 2, "{:?}", told(&loaded));
}

#[test]
fn a_broken_object_keeps_what_it_was_in_another_file() {
    let loaded = load(&empty(), files(&[("a.yaml", &namespace("x", "1"))]));
    let loaded = load(&loaded, files(&[("b.yaml", &broken("x"))]));
    assert_eq!(in_force(&loaded), ["x 1"]);
    assert!(told(&loaded)[0].ends_with("its last good version stays in force"));
}

#[test]
fn what_does_not_change_is_shared() {
    let both = || files(&[("a.yaml", &namespace("x", "1")), ("b.yaml", &namespace("y", "1"))]);
    let first = load(&empty(), both());
    let again = load(&first, both());
    assert!(Arc::ptr_eq(&first.view().objects, &again.view().objects));
    assert!(Arc::ptr_eq(&first.view().conditions, &again.view().conditions));
    let changed = files(&[("a.yaml", &namespace("x", "2")), ("b.yaml", &namespace("y", "1"))]);
    let changed = load(&again, changed);
    let (old, new) = (&first.view().objects.namespaces, &changed.view().objects.namespaces);
    assert!(Arc::ptr_eq(old.get("y").unwrap(), new.get("y").unwrap()));
    assert!(!Arc::ptr_eq(old.get("x").unwrap(), new.get("x").unwrap()));
    // A file that is written anew with one object changed keeps the others.
    let joined = |x| files(&[("a.yaml", &(namespace("x", x) + &namespace("y", "1")))]);
    let first = load(&empty(), joined("1"));
    let second = load(&first, joined("2"));
    let (old, new) = (&first.view().objects.namespaces, &second.view().objects.namespaces);
    assert!(Arc::ptr_eq(old.get("y").unwrap(), new.get("y").unwrap()));
}

#[test]
fn unchanged_files_stay() {
    let loaded = load(&empty(), files(&[("a.yaml", &namespace("x", "1"))]));
    let unchanged = || Files::from([("a.yaml".to_owned(), Content::Unchanged)]);
    assert_eq!(in_force(&load(&loaded, unchanged())), ["x 1"]);
    let never = load(&empty(), unchanged());
    assert_eq!(in_force(&never), [""; 0]);
    assert_eq!(told(&never).len(), 1);
}

#[test]
fn policies_of_remote_clusters_do_not_count() {
    let text = "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\nmetadata: {name: s}\n\
                spec: {nets: [broken]}\n";
    let remote = Loaded::new(ClusterId::Remote("r".into()));
    let loaded = load(&remote, files(&[("a.yaml", text)]));
    assert_eq!(*loaded.view().objects, ClusterObjects::default());
    assert_eq!(told(&loaded), [""; 0]);
}

#[test]
fn a_broken_policy_keeps_its_last_good_version() {
    let policy = |selector: &str| {
        format!(
            "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\n\
             metadata: {{name: deny}}\nspec: {{selector: \"{selector}\", types: [Ingress]}}\n"
        )
    };
    let first = load(&empty(), files(&[("a.yaml", &policy("app == 'x'"))]));
    assert_eq!(told(&first), [""; 0]);
    assert_eq!(first.view().objects.policy.0.len(), 1);
    let next = load(&first, files(&[("a.yaml", &policy("app == "))]));
    assert!(Arc::ptr_eq(&first.view().objects, &next.view().objects));
    let told = told(&next);
    assert_eq!(told.len(), 1);
    assert!(told[0].starts_with("GlobalNetworkPolicy deny: a.yaml document 1: spec.selector: "));
    assert!(told[0].ends_with("; its last good version stays in force"), "{told:?}");
}

#[test]
fn warnings_are_told_and_the_object_counts() {
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: n, annotations: \
                {projectcalico.org/IPv4Address: x}}\n";
    let loaded = load(&empty(), files(&[("a.yaml", node)]));
    assert_eq!(loaded.view().objects.nodes.len(), 1);
    assert_eq!(loaded.view().conditions[0].severity, Severity::Warning);
}

/// A file's content among several versions, broken ones too.
fn content() -> impl Strategy<Value = String> {
    let object = (0..4usize, 0..3usize, 0..6usize).prop_map(|(name, version, kind)| {
        let name = ["w", "x", "y", "z"][name];
        if kind == 0 { broken(name) } else { namespace(name, ["1", "2", "3"][version]) }
    });
    let objects = prop::collection::vec(object, 0..4).prop_map(|objects| objects.concat());
    prop_oneof![9 => objects, 1 => Just("a: [".to_owned())]
}

fn directory() -> impl Strategy<Value = Vec<(usize, String)>> {
    prop::collection::vec((0..3usize, content()), 0..4)
}

fn as_files(directory: &[(usize, String)]) -> Files {
    let name = |n: &usize| ["a.yaml", "b.yaml", "c/d.yml"][*n].to_owned();
    directory.iter().map(|(n, text)| (name(n), bytes(text))).collect()
}

proptest! {
    /// Whatever was before: once all files are sound, only they count.
    #[test]
    fn sound_files_forget_the_past(
        past in prop::collection::vec(directory(), 0..5),
        now in prop::collection::vec((0..3usize, 0..4usize, 0..3usize), 0..6),
    ) {
        let sound: Vec<_> = now
            .iter()
            .map(|(file, name, version)| {
                (*file, namespace(["w", "x", "y", "z"][*name], ["1", "2", "3"][*version]))
            })
            .collect();
        let before = past.iter().fold(empty(), |loaded, files| load(&loaded, as_files(files)));
        let after = load(&before, as_files(&sound));
        let fresh = load(&empty(), as_files(&sound));
        prop_assert_eq!(after.view(), fresh.view());
    }

    /// Loading the same files again changes nothing, broken or not.
    #[test]
    fn loading_twice_is_loading_once(
        past in prop::collection::vec(directory(), 0..4),
        now in directory(),
    ) {
        let before = past.iter().fold(empty(), |loaded, files| load(&loaded, as_files(files)));
        let once = load(&before, as_files(&now));
        let twice = load(&once, as_files(&now));
        prop_assert_eq!(once.view(), twice.view());
    }

    /// No object that a file still names is ever lost to breakage.
    #[test]
    fn nothing_is_lost_to_breakage(good in 0..4usize, text in content()) {
        let all = ["w", "x", "y", "z"];
        let first = load(&empty(), files(&[("a.yaml", &namespace(all[good], "1"))]));
        let next = load(&first, files(&[("a.yaml", &text)]));
        let named = text.contains(&format!("name: {}", all[good])) || text == "a: [";
        let there = next.view().objects.namespaces.contains_key(all[good]);
        prop_assert_eq!(there, named);
    }

    #[test]
    fn nothing_panics_on_bytes(
        past in prop::collection::vec(any::<u8>(), 0..100),
        now in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let of = |bytes: Vec<u8>| Files::from([("a.yaml".to_owned(), Content::Bytes(bytes))]);
        load(&load(&empty(), of(past)), of(now));
    }
}
