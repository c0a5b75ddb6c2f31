//! The writes themselves: as far as the pace allows, as long as the lease is
//! held, and what is concluded from their failures.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use kube::core::DynamicObject;
use tracing::warn;

use super::api::{self, Failure};
use super::object::{self, Storage, Written};
use super::pace::{GONE, SAME_SET};
use super::sets::{Plan, Write};
use super::writer::{Held, Task, wait};

/// Writes between two looks at everything else.
const SLICE: usize = 16;
/// How long a write that can wait does so while there are more urgent ones.
const PATIENCE: Duration = Duration::from_secs(30);

impl Task {
    pub(super) async fn write_sets(&mut self) -> Option<Instant> {
        let leading = self.leading.as_mut()?;
        let storage = leading.storage?;
        let wanted = leading.wanted.take()?;
        // What the API refuses must not keep addresses in other sets.
        let refused = leading.held.iter().filter(|(_, held)| held.reason.is_some());
        let refused: BTreeSet<&str> = refused.map(|((_, name), _)| name.as_str()).collect();
        let possible = (!refused.is_empty()).then(|| {
            let all = wanted.sets.iter().filter(|(name, _)| !refused.contains(name.as_str()));
            all.map(|(name, set)| (name.clone(), set.clone())).collect()
        });
        let mut plan = Plan::new(leading.sets.present(), possible.as_ref().unwrap_or(&wanted.sets));
        let now = Instant::now();
        let names: BTreeSet<String> = plan.differing().into_iter().map(str::to_owned).collect();
        leading.differs_since.retain(|name, _| names.contains(name));
        let refused_count = refused.len();
        let mut order: Vec<(Instant, bool, String)> = names
            .into_iter()
            .map(|name| {
                let since = *leading.differs_since.entry(name.clone()).or_insert(now);
                (since, plan.holds_for_others(&name), name)
            })
            .collect();
        order.sort();
        leading.written.retain(|_, at| *at + SAME_SET > now);
        let resource = storage.resource(Written::Set.kind());
        let mut wake: Option<Instant> = None;
        let mut wake_at = |at: Instant| wake = Some(wake.map_or(at, |other| other.min(at)));
        let mut made = 0;
        for (since, _, name) in &order {
            let now = Instant::now();
            if made == SLICE || !self.election.holds(now) {
                wake_at(now);
                break;
            }
            let leading = self.leading.as_mut()?;
            let held = leading.held.get(&(Written::Set, name.clone())).map(|held| held.until);
            let again = leading.written.get(name).map(|at| *at + SAME_SET);
            if let Some(at) = held.max(again).filter(|at| *at > now) {
                wake_at(at);
                continue;
            }
            let can_wait = *since + PATIENCE > now && plan.can_wait(name, &wanted.gone);
            if can_wait && *since + GONE > now {
                wake_at(*since + GONE);
                continue;
            }
            let Some(write) = plan.next(name) else { continue };
            if let Err(at) = leading.pace.ready(can_wait, now) {
                wake_at(at);
                if can_wait {
                    continue;
                }
                break;
            }
            let seen = leading.sets.seen(name).cloned();
            let outcome = match (&write, &seen) {
                (Write::Put(set), seen) => {
                    let body = object::set(storage, name, set);
                    let put = self.requests.apply(&resource, name, body, seen.as_ref()).await;
                    put.map(Some)
                }
                (Write::Delete, Some(seen)) => {
                    self.requests.delete(&resource, name, seen).await.map(|()| None)
                }
                (Write::Delete, None) => continue,
            };
            made += 1;
            if self.concluded(Written::Set, name, storage, outcome).await {
                plan.done(name, &write);
            } else {
                wake_at(Instant::now());
                break;
            }
        }
        let leading = self.leading.as_mut()?;
        leading.waiting = plan.differing().len() + refused_count;
        if leading.waiting == 0 {
            leading.pace.settled();
            leading.trails = false;
        }
        leading.wanted = Some(wanted);
        wake
    }

    pub(super) async fn write_pools(&mut self) -> Option<Instant> {
        let leading = self.leading.as_ref()?;
        let storage = leading.storage?;
        let resource = storage.resource(Written::Pool.kind());
        let wanted = &leading.wanted.as_ref()?.pools;
        let present = &leading.pools.objects;
        let puts = wanted.iter().filter(|(name, pool)| {
            present.get(*name).is_none_or(|(_, there)| there.as_ref() != Ok(*pool))
        });
        let puts = puts.map(|(name, pool)| (name.clone(), Some(pool.clone())));
        // Never the last one that covers a range before its successor is there.
        let gone = present.keys().filter(|name| !wanted.contains_key(*name));
        let due: Vec<_> = puts.chain(gone.map(|name| (name.clone(), None))).collect();
        let mut wake = None;
        for (name, pool) in due {
            let now = Instant::now();
            let leading = self.leading.as_mut()?;
            let held = leading.held.get(&(Written::Pool, name.clone())).map(|held| held.until);
            if let Some(until) = held.filter(|until| *until > now) {
                wake = Some(wake.map_or(until, |other: Instant| other.min(until)));
                continue;
            }
            if let Err(at) = leading.pace.ready(false, now) {
                return Some(at);
            }
            if !self.election.holds(now) {
                return Some(now);
            }
            let seen = leading.pools.seen(&name).cloned();
            let outcome = match (&pool, &seen) {
                (Some(pool), seen) => {
                    let body = object::pool(storage, &name, pool);
                    self.requests.apply(&resource, &name, body, seen.as_ref()).await.map(Some)
                }
                (None, Some(seen)) => {
                    self.requests.delete(&resource, &name, seen).await.map(|()| None)
                }
                (None, None) => continue,
            };
            if !self.concluded(Written::Pool, &name, storage, outcome).await {
                return Some(Instant::now());
            }
        }
        wake
    }

    /// Takes in what has become of a write; whether it was carried out.
    async fn concluded(
        &mut self,
        kind: Written,
        name: &str,
        storage: Storage,
        outcome: Result<Option<DynamicObject>, Failure>,
    ) -> bool {
        let now = Instant::now();
        let Some(leading) = &mut self.leading else { return false };
        let failure = match outcome {
            Ok(written) => {
                leading.pace.spend(written.is_none(), now);
                leading.failures = 0;
                leading.held.remove(&(kind, name.to_owned()));
                leading.written.insert(name.to_owned(), now);
                match (kind, written) {
                    (Written::Set, Some(object)) => leading.sets.take(storage, &object),
                    (Written::Pool, Some(object)) => leading.pools.take(storage, &object),
                    (Written::Set, None) => leading.sets.deleted(name),
                    (Written::Pool, None) => leading.pools.deleted(name),
                }
                self.writes += 1;
                self.last_write = Some(api::now());
                self.settle("write");
                return true;
            }
            Err(failure) => failure,
        };
        warn!(object = name, %failure, "{} is not written", kind.kind());
        let held = |times: u32, reason| {
            let longest = Duration::from_secs(300);
            let until = now + Duration::from_secs(1 << times.min(9)).min(longest);
            Held { until, times: times + 1, reason }
        };
        let key = (kind, name.to_owned());
        let times = leading.held.get(&key).map_or(0, |held| held.times);
        match failure {
            Failure::Changed => {
                let present = self.requests.get(&storage.resource(kind.kind()), name).await;
                match (kind, present) {
                    (Written::Set, Ok(Some(object))) => leading.sets.take(storage, &object),
                    (Written::Pool, Ok(Some(object))) => leading.pools.take(storage, &object),
                    (Written::Set, Ok(None)) => leading.sets.deleted(name),
                    (Written::Pool, Ok(None)) => leading.pools.deleted(name),
                    (_, Err(_)) => {}
                }
                leading.held.insert(key, held(times, None));
            }
            Failure::Foreign | Failure::Refused(_) => {
                leading.held.insert(key, held(times + 4, Some(failure)));
            }
            // Priority and fairness says how long in a header that the client
            // keeps to itself, so patience grows.
            Failure::Busy(patience) => {
                leading.pace.hold_until(now + patience.max(wait(leading.failures)));
                leading.failures += 1;
                self.fail("write", failure);
            }
            Failure::NotFound(_) => {
                // The kind itself is gone, or the object was deleted just now.
                leading.sets.deleted(name);
                leading.held.insert(key, held(times, None));
            }
            Failure::Forbidden(_) | Failure::Unreachable(_) => {
                leading.pace.hold_until(now + wait(leading.failures));
                leading.failures += 1;
                self.fail("write", failure);
            }
        }
        false
    }
}
