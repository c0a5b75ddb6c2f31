use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{CHUNK, Map};

#[derive(Clone, Debug)]
enum Edit {
    Insert(u16, u8),
    Remove(u16),
}

fn edits(most: usize) -> impl Strategy<Value = Vec<Edit>> {
    let key = 0..1500u16;
    let edit = prop_oneof![
        3 => (key.clone(), any::<u8>()).prop_map(|(key, value)| Edit::Insert(key, value)),
        2 => key.prop_map(Edit::Remove),
    ];
    proptest::collection::vec(edit, 0..most)
}

fn apply(map: &mut Map<u16, u8>, reference: &mut BTreeMap<u16, u8>, edits: &[Edit]) {
    for edit in edits {
        match *edit {
            Edit::Insert(key, value) => {
                assert_eq!(map.insert(key, value), reference.insert(key, value));
            }
            Edit::Remove(key) => assert_eq!(map.remove(&key), reference.remove(&key)),
        }
    }
}

fn assert_equal(map: &Map<u16, u8>, reference: &BTreeMap<u16, u8>) {
    assert!(map.iter().eq(reference.iter()));
    assert_eq!(map.len(), reference.len());
    assert!(map.chunks.iter().all(|chunk| (1..=CHUNK).contains(&chunk.len())));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Against the standard library's map: content, order, lookups, and what
    /// differs between any two versions, however far apart.
    #[test]
    fn it_is_a_sorted_map_and_tells_what_changed(
        filled in 0..1500u16,
        first in edits(2000),
        second in edits(40),
        probe in 0..1600u16,
    ) {
        let mut reference: BTreeMap<u16, u8> = (0..filled).map(|key| (key, 0)).collect();
        let mut map: Map<u16, u8> = reference.clone().into_iter().collect();
        apply(&mut map, &mut reference, &first);
        assert_equal(&map, &reference);
        prop_assert_eq!(map.get(&probe), reference.get(&probe));
        prop_assert!(map.starting_at(&probe).eq(reference.range(probe..)));

        let (old, old_reference) = (map.clone(), reference.clone());
        apply(&mut map, &mut reference, &second);
        assert_equal(&old, &old_reference);
        assert_equal(&map, &reference);
        let keys = old_reference.keys().chain(reference.keys()).copied();
        let mut expected: Vec<_> = keys
            .map(|key| (key, old_reference.get(&key).copied(), reference.get(&key).copied()))
            .filter(|(_, old, new)| old != new)
            .collect();
        expected.sort_unstable();
        expected.dedup();
        let diff = old.diff(&map).map(|(key, old, new)| (*key, old.copied(), new.copied()));
        prop_assert_eq!(diff.collect::<Vec<_>>(), expected.clone());
        prop_assert_eq!(old == map, expected.is_empty());
    }
}

#[test]
fn a_change_copies_one_chunk() {
    let old: Map<u32, u32> = (0..100_000).map(|key| (key, key)).collect();
    let mut new = old.clone();
    new.insert(54_321, 0);
    let chunks = old.chunks.iter().zip(new.chunks.iter());
    assert_eq!(chunks.filter(|(a, b)| !std::sync::Arc::ptr_eq(a, b)).count(), 1);
    assert_eq!(old.diff(&new).count(), 1);
    assert_eq!(old.diff(&old).count(), 0);
}
