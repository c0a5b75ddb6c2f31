use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::cluster::Scope;
use crate::cluster::kubernetes::resources;
use crate::cluster::object::convert;

const ALL: &Shape = &Shape::All;

#[test]
fn pages_are_read_object_by_object() {
    let text = r#"{"kind":"PodList","metadata":{"resourceVersion":"12","continue":"abc",
        "remainingItemCount":3},"items":[{"metadata":{"name":"a"}},{"metadata":{"name":"b"}}]}"#;
    let mut names = Vec::new();
    let page = page(text.as_bytes(), ALL, &mut |value| {
        names.push(value["metadata"]["name"].as_str().unwrap().to_owned());
    })
    .unwrap();
    assert_eq!(names, ["a", "b"]);
    let wanted = Page {
        resource_version: "12".into(),
        r#continue: "abc".into(),
        remaining_item_count: Some(3),
    };
    assert_eq!(page, wanted);
    for bad in ["", "[]", "null", "<html>", r#"{"items":3}"#, r#"{"items":[{]}"#] {
        assert!(super::page(bad.as_bytes(), ALL, &mut |_| ()).is_err(), "{bad}");
    }
    let none = br#"{"items":null,"metadata":{}}"#;
    assert_eq!(super::page(none, ALL, &mut |_| ()).unwrap(), Page::default());
}

#[test]
fn events_are_told_apart() {
    let read = |text: &str| Event::read(text.as_bytes(), ALL);
    let object = json!({"metadata": {"resourceVersion": "5"}});
    for (kind, wanted) in [
        ("ADDED", Event::Put(object.clone())),
        ("MODIFIED", Event::Put(object.clone())),
        ("DELETED", Event::Gone(object.clone())),
        ("BOOKMARK", Event::Bookmark("5".into())),
    ] {
        let line = json!({"type": kind, "object": object}).to_string();
        assert_eq!(read(&line).unwrap(), wanted);
    }
    let gone = json!({"type": "ERROR", "object": {"code": 410, "message": "m", "reason": "Gone"}});
    let status = Status { code: 410, message: "m".into(), reason: "Gone".into() };
    assert_eq!(read(&gone.to_string()).unwrap(), Event::Error(status));
    assert!(read("{}").is_err());
    assert!(read("[]").is_err());
}

/// Values like those of an API, with the names of fields that count.
fn value() -> impl Strategy<Value = Value> {
    let names = [
        "apiVersion",
        "kind",
        "metadata",
        "name",
        "namespace",
        "labels",
        "annotations",
        "spec",
        "status",
        "nodeName",
        "hostNetwork",
        "containers",
        "initContainers",
        "ports",
        "podIP",
        "podIPs",
        "ip",
        "phase",
        "addresses",
        "type",
        "address",
        "managedFields",
        "other",
        "containerPort",
        "serviceAccountName",
        "deletionTimestamp",
        "uid",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop::sample::select(vec!["a", "10.0.0.1", "", "Running"]).prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 60, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((prop::sample::select(names.to_vec()), inner), 0..6).prop_map(
                |fields| fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
            ),
        ]
    })
}

proptest! {
    /// What is trimmed away makes no difference.
    #[test]
    fn trimmed_objects_are_the_same_objects(meta in value(), spec in value(), status in value()) {
        let mut object = json!({"metadata": meta, "spec": spec, "status": status});
        if object["metadata"].is_object() {
            object["metadata"]["name"] = json!("n");
        }
        let text = object.to_string();
        for resource in resources::of(Scope::Local) {
            let mut deserializer = serde_json::Deserializer::from_str(&text);
            let trimmed = resource.shape.deserialize(&mut deserializer).unwrap();
            prop_assert_eq!(convert(resource.kind, &trimmed), convert(resource.kind, &object));
        }
    }

    #[test]
    fn nothing_panics_on_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Event::read(&bytes, ALL);
        let _ = page(&bytes, ALL, &mut |_| ());
    }

    #[test]
    fn nothing_panics_on_values(value in value()) {
        let text = value.to_string();
        for resource in resources::of(Scope::Local) {
            let _ = Event::read(text.as_bytes(), resource.shape);
            let _ = page(text.as_bytes(), resource.shape, &mut |_| ());
        }
    }
}
