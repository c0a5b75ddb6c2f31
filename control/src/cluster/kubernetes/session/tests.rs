use super::*;

fn group(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn calicos_objects_are_read_where_they_are_stored() {
    let store = group(&["ippools", "ipamblocks"]);
    let shown = group(&["ippools", "networkpolicies"]);
    let ours = group(&["remoteclusterconfigurations"]);
    for (storage, native, in_use, wanted) in [
        (Some(&store), None, false, Some(STORAGE)),
        (Some(&store), Some(&shown), false, Some(STORAGE)),
        (Some(&store), Some(&ours), false, Some(STORAGE)),
        (None, Some(&store), false, Some(NATIVE)),
        (Some(&store), Some(&store), false, Some(STORAGE)),
        (Some(&store), Some(&store), true, Some(NATIVE)),
        (None, Some(&shown), false, None),
        (None, None, false, None),
    ] {
        assert_eq!(calico_group(storage, native, in_use), wanted, "{storage:?} {native:?}");
    }
}

#[test]
fn resources_are_named_as_in_roles() {
    let groups = Groups { calico: Some(NATIVE.to_owned()), rcc: Some("example.org/v1".to_owned()) };
    let targets: Vec<Target> =
        of(crate::cluster::Scope::Local).map(|resource| target(resource, &groups)).collect();
    let named = |name: &str| targets.iter().find(|t| t.resource == name).expect(name);
    assert_eq!(named("pods").path, "/api/v1/pods");
    assert_eq!(named("ippools.projectcalico.org").path, "/apis/projectcalico.org/v3/ippools");
    assert_eq!(
        named("remoteclusterconfigurations.example.org").path,
        "/apis/example.org/v1/remoteclusterconfigurations"
    );
    assert_eq!(
        named("networkpolicies.networking.k8s.io").path,
        "/apis/networking.k8s.io/v1/networkpolicies"
    );
}
