//! The endpoints of the services that rules name, ready or not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Entry, Key, Placed};
use crate::map::Map;
use crate::policy::api::{self, PolicyKind, PolicyObject};
use crate::policy::model::ServiceEndpoint;
use crate::state::ObjectName;

/// Who names a service, and which slices are of it.
#[derive(Debug, Default)]
pub(super) struct Services {
    /// How many policies name it.
    users: BTreeMap<ObjectName, usize>,
    /// Names of slices, in the service's namespace.
    slices: BTreeMap<ObjectName, BTreeSet<String>>,
    /// Services of which one or the other has changed.
    touched: BTreeSet<ObjectName>,
    endpoints: Map<ObjectName, Arc<[ServiceEndpoint]>>,
}

impl Services {
    pub(super) fn insert(&mut self, name: &ObjectName, entry: &Entry) {
        for service in &entry.services {
            *self.users.entry(service.clone()).or_default() += 1;
            self.touched.insert(service.clone());
        }
        if let Some(service) = service_of(name, entry) {
            self.slices.entry(service.clone()).or_default().insert(name.name.clone());
            self.touched.insert(service);
        }
    }

    pub(super) fn remove(&mut self, name: &ObjectName, entry: &Entry) {
        for service in &entry.services {
            if let Some(users) = self.users.get_mut(service) {
                *users -= 1;
                if *users == 0 {
                    self.users.remove(service);
                }
            }
            self.touched.insert(service.clone());
        }
        if let Some(service) = service_of(name, entry) {
            if let Some(slices) = self.slices.get_mut(&service) {
                slices.remove(&name.name);
                if slices.is_empty() {
                    self.slices.remove(&service);
                }
            }
            self.touched.insert(service);
        }
    }

    /// The endpoints of all services that are named.
    pub(super) fn endpoints(
        &mut self,
        entries: &BTreeMap<Key, Entry>,
    ) -> Map<ObjectName, Arc<[ServiceEndpoint]>> {
        for service in std::mem::take(&mut self.touched) {
            if !self.users.contains_key(&service) {
                self.endpoints.remove(&service);
                continue;
            }
            let mut all = BTreeSet::new();
            for slice in self.slices.get(&service).into_iter().flatten() {
                let name = ObjectName { namespace: service.namespace.clone(), name: slice.clone() };
                let entry = entries.get(&(PolicyKind::EndpointSlice, name));
                if let Some(PolicyObject::EndpointSlice(slice)) = entry.map(|it| &*it.object) {
                    add_endpoints(slice, &mut all);
                }
            }
            let all: Arc<[_]> = all.into_iter().collect();
            if self.endpoints.get(&service) != Some(&all) {
                self.endpoints.insert(service, all);
            }
        }
        self.endpoints.clone()
    }
}

/// The service that a slice is of.
fn service_of(name: &ObjectName, entry: &Entry) -> Option<ObjectName> {
    let PolicyObject::EndpointSlice(slice) = &*entry.object else { return None };
    let service = slice.service.as_ref()?;
    Some(ObjectName { namespace: name.namespace.clone(), name: service.clone() })
}

/// The services that a policy's rules name.
pub(super) fn services_of(placed: &Placed) -> BTreeSet<ObjectName> {
    let rules = [&placed.policy.ingress, &placed.policy.egress].into_iter().flatten().flatten();
    let services = rules.flat_map(|rule| [&rule.source.service, &rule.destination.service]);
    services.flatten().filter(|name| !name.namespace.is_empty()).cloned().collect()
}

fn add_endpoints(slice: &api::EndpointSlice, endpoints: &mut BTreeSet<ServiceEndpoint>) {
    for &address in &slice.addresses {
        let mut numbered = false;
        for port in &slice.ports {
            if let Some(number) = port.port {
                numbered = true;
                let port = Some((port.protocol, number));
                endpoints.insert(ServiceEndpoint { address, port });
            }
        }
        if !numbered {
            endpoints.insert(ServiceEndpoint { address, port: None });
        }
    }
}
