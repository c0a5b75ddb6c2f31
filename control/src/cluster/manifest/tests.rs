use proptest::prelude::*;

use super::*;

fn good(text: &str) -> Vec<String> {
    let manifest = read(text.as_bytes(), Scope::Local).expect("a readable file");
    let describe = |item: &Item| match item {
        Item::Good { document, kind, written, .. } => format!("{document} {kind} {written}"),
        Item::Broken { document, label, error, .. } => format!("{document} {label}: {error}"),
    };
    manifest.items.iter().map(describe).collect()
}

fn syntax(bytes: &[u8]) -> String {
    read(bytes, Scope::Local).expect_err("an unreadable file").to_string()
}

#[test]
fn documents_and_lists() {
    assert_eq!(good(""), [""; 0]);
    assert_eq!(good("# nothing\n---\n---\n"), [""; 0]);
    assert_eq!(
        good("\u{feff}---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n"),
        ["1 Namespace a"]
    );
    let several = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n---\n\
                   apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: b}\n...\n---\n\
                   apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: b, namespace: c}\n";
    assert_eq!(
        good(several),
        ["1 Namespace a", "2 ServiceAccount default/b", "3 ServiceAccount c/b"]
    );
    let list = r#"{"apiVersion":"v1","kind":"List","items":[
        {"apiVersion":"v1","kind":"Namespace","metadata":{"name":"a"}},
        {"apiVersion":"v1","kind":"NamespaceList","items":[{"metadata":{"name":"b"}}]}]}"#;
    assert_eq!(good(list), ["1 Namespace a", "1 Namespace b"]);
    let stream = r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"a"}}
                    {"apiVersion":"v1","kind":"Namespace","metadata":{"name":"b"}}"#;
    assert_eq!(good(stream), ["1 Namespace a", "2 Namespace b"]);
    assert_eq!(good("apiVersion: v1\nkind: PodList\nitems: null\n"), [""; 0]);
}

#[test]
fn unread_kinds_are_counted() {
    let text = "apiVersion: apps/v1\nkind: Deployment\n---\napiVersion: apps/v1\nkind: Deployment\n\
                ---\napiVersion: v2\nkind: Pod\n---\napiVersion: example.org/v1\nkind: Tier\n";
    let manifest = read(text.as_bytes(), Scope::Local).unwrap();
    assert_eq!(manifest.items, []);
    let ignored: Vec<_> = manifest.ignored.iter().map(|(label, n)| (label.as_str(), *n)).collect();
    assert_eq!(ignored, [("apps/v1 Deployment", 2), ("example.org/v1 Tier", 1), ("v2 Pod", 1)]);
}

#[test]
fn both_groups_of_calico_are_read() {
    for group in ["projectcalico.org/v3", "crd.projectcalico.org/v1"] {
        let text = format!(
            "{{apiVersion: {group}, kind: IPPool, metadata: {{name: p}}, spec: {{cidr: 10.0.0.0/8}}}}"
        );
        assert_eq!(good(&text), ["1 IPPool p"]);
    }
}

#[test]
fn broken_objects_stand_beside_good_ones() {
    let text = "just text\n---\n[1, 2]\n---\n{}\n---\n{apiVersion: v1}\n---\n\
                {apiVersion: v1, kind: 3}\n---\n{apiVersion: v1, kind: Namespace}\n---\n\
                {apiVersion: v1, kind: Namespace, metadata: {name: ''}}\n---\n\
                {apiVersion: v1, kind: Namespace, metadata: {name: 5}}\n---\n\
                {apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {x: 1}}}\n---\n\
                {apiVersion: v1, kind: Namespace, metadata: {name: b, labels: []}}\n---\n\
                {apiVersion: v1, kind: Namespace, metadata: {name: c}}\n";
    assert_eq!(
        good(text),
        [
            "1 object: apiVersion: is missing; a manifest is a map with apiVersion and kind",
            "2 object: apiVersion: is missing; a manifest is a map with apiVersion and kind",
            "3 object: apiVersion: is missing; a manifest needs apiVersion and kind",
            "4 object: kind: is missing; a manifest needs apiVersion and kind",
            "5 object: kind: is missing; a manifest needs apiVersion and kind",
            "6 v1 Namespace: metadata.name: is missing; set it",
            "7 v1 Namespace: metadata.name: is missing; set it",
            "8 v1 Namespace: metadata.name: is a number; write text, in quotes",
            "9 v1 Namespace: metadata.labels.x: is a number; write text, in quotes",
            "10 v1 Namespace: metadata.labels: is a list; write a map",
            "11 Namespace c",
        ]
    );
}

#[test]
fn lists_in_lists_have_an_end() {
    let mut text = "{apiVersion: v1, kind: Namespace, metadata: {name: a}}".to_owned();
    for _ in 0..6 {
        text = format!("{{apiVersion: v1, kind: List, items: [{text}]}}");
    }
    assert_eq!(good(&text), ["1 v1 List: items: holds lists more than 4 deep; unfold them"]);
}

#[test]
fn unreadable_files_say_where() {
    assert_eq!(syntax(b"a: \xff"), "is no text from byte 3 on; write it as UTF-8");
    for text in [
        "a: [1, 2",
        "a: b: c",
        "{\"a\": 1",
        "a: 1\na: 2",
        "&a [*a]",
        "a: *nowhere",
        "x: !!binary \"%%%\"",
    ] {
        let message = syntax(text.as_bytes());
        assert!(message.starts_with("is no valid YAML or JSON: "), "{text:?}: {message}");
        assert!(!message.contains('\n'), "{text:?}: {message}");
        assert!(message.contains("line 1") || message.contains("line 2"), "{text:?}: {message}");
    }
}

#[test]
fn hostile_files_are_refused() {
    let deep = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
    syntax(deep.as_bytes());
    syntax(format!("{{\"a\":{deep}}}").as_bytes());
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..12 {
        let (last, items) = (n - 1, format!("*a{}, ", n - 1).repeat(9));
        bomb += &format!("a{n}: &a{n} [{}]\n", items.trim_end_matches(", "));
        assert!(bomb.contains(&format!("*a{last}")));
    }
    syntax(bomb.as_bytes());
    let large = vec![b' '; MAX_FILE_BYTES + 1];
    let message = "has 67108865 bytes, the limit is 67108864; split the file";
    assert_eq!(syntax(&large), message);
}

#[test]
fn large_files_are_read() {
    let one = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: n}\n";
    let read = read(one.repeat(30_000).as_bytes(), Scope::Local).expect("within the limits");
    assert_eq!(read.items.len(), 30_000);
}

/// Text that looks like a manifest, more or less.
fn manifest_like() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "apiVersion",
        "kind",
        "v1",
        "Pod",
        "List",
        "IPPool",
        "projectcalico.org/v3",
        "items",
        "metadata",
        "name",
        "labels",
        "spec",
        "cidr",
        "10.0.0.0/8",
        "null",
        "true",
        "-1",
        "1e99",
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "-",
        "\n",
        "\n  ",
        "---\n",
        "\"",
        "'",
        "&a",
        "*a",
        "!!str",
        "|",
        ">",
        "#",
        "%",
        "?",
        "<<",
        "\u{feff}",
        "é",
        "\0",
    ]);
    prop::collection::vec(word, 0..60).prop_map(|words| words.join(" "))
}

proptest! {
    #[test]
    fn nothing_panics_on_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(&bytes, Scope::Local);
    }

    #[test]
    fn nothing_panics_on_text(text in manifest_like()) {
        let _ = read(text.as_bytes(), Scope::Remote);
    }
}
