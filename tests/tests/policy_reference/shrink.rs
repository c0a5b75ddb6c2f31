//! The smallest clusters that still fail.

use serde_json::Value;
use tieline_tests::reference::Clusters;

/// Leaves out objects, then parts of them, as long as `fails` says that what is
/// left still does.
pub(crate) fn shrink(mut clusters: Clusters, fails: impl Fn(&Clusters) -> bool) -> Clusters {
    loop {
        let before = clusters.clone();
        for remote in clusters.remotes.keys().cloned().collect::<Vec<_>>() {
            without_some(&mut clusters, &fails, |all| all.remotes.get_mut(&remote));
        }
        without_some(&mut clusters, &fails, |all| Some(&mut all.local));
        for at in 0..clusters.local.len() {
            let mut object = clusters.local[at].clone();
            simplify(&mut object, &mut Vec::new(), &|smaller| {
                let mut all = clusters.clone();
                all.local[at] = smaller.clone();
                fails(&all)
            });
            clusters.local[at] = object;
        }
        if clusters == before {
            return clusters;
        }
    }
}

fn without_some(
    clusters: &mut Clusters,
    fails: &impl Fn(&Clusters) -> bool,
    list: impl Fn(&mut Clusters) -> Option<&mut Vec<Value>>,
) {
    let mut at = 0;
    while let Some(objects) = list(clusters)
        && at < objects.len()
    {
        let removed = objects.remove(at);
        if !fails(clusters)
            && let Some(objects) = list(clusters)
        {
            objects.insert(at, removed);
            at += 1;
        }
    }
}

/// Removes fields and entries below a path, deepest last.
fn simplify(object: &mut Value, path: &mut Vec<String>, fails: &dyn Fn(&Value) -> bool) {
    let pointer: String = path.iter().map(|step| format!("/{}", step.replace('/', "~1"))).collect();
    let keys: Vec<String> = match object.pointer(&pointer) {
        Some(Value::Object(map)) => map.keys().cloned().collect(),
        Some(Value::Array(list)) => (0..list.len()).rev().map(|at| at.to_string()).collect(),
        _ => return,
    };
    for key in keys {
        // What an object is called stays.
        if ["apiVersion", "kind", "namespace", "name"].contains(&key.as_str()) {
            continue;
        }
        let mut smaller = object.clone();
        match smaller.pointer_mut(&pointer) {
            Some(Value::Object(map)) => {
                map.remove(&key);
            }
            Some(Value::Array(list)) => {
                list.remove(key.parse().expect("a place"));
            }
            _ => continue,
        }
        if fails(&smaller) {
            *object = smaller;
        } else {
            path.push(key);
            simplify(object, path, fails);
            path.pop();
        }
    }
}
