//! Addresses to classes.
//!
//! What a rule can see of an address is reduced by control to one small
//! number, its class. An address that is an endpoint's has the class of the
//! endpoint; any other address has the class of the longest prefix that some
//! rule or network set names and that holds it.

use super::policy::PolicyId;
use super::prefix::PrefixMap;
use super::shard::ShardMap;
use crate::addr::{Addr, Prefix};

/// A set of addresses that no rule in force can tell apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClassId(pub u32);

impl ClassId {
    /// The class of IPv4 addresses that no selector, set or net matches.
    pub const UNKNOWN_V4: Self = Self(0);
    /// The class of IPv6 addresses that no selector, set or net matches.
    pub const UNKNOWN_V6: Self = Self(1);
}

/// What is known of one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// What rules see of it.
    pub class: ClassId,
    /// The policy that applies to it; `None` unless it is a pod of this node.
    pub policy: Option<PolicyId>,
    /// Whether packets may leave this node with it as their source: the
    /// address of a local pod or of the node itself.
    pub local: bool,
}

/// The table of known addresses.
#[derive(Clone, Debug, Default)]
pub struct Endpoints {
    exact: ShardMap<Endpoint>,
    prefixes: PrefixMap<ClassId>,
}

impl Endpoints {
    /// What is known of exactly this address.
    #[inline]
    pub fn get(&self, addr: Addr) -> Option<&Endpoint> {
        self.exact.get(addr.bits())
    }

    /// The class of any address.
    #[inline]
    pub fn class(&self, addr: Addr) -> ClassId {
        if let Some(endpoint) = self.get(addr) {
            return endpoint.class;
        }
        self.prefixes.get(addr).copied().unwrap_or(if addr.is_v4() {
            ClassId::UNKNOWN_V4
        } else {
            ClassId::UNKNOWN_V6
        })
    }

    /// The addresses of which something else is known than in `previous`, each
    /// once.
    pub(super) fn changed<'a>(&'a self, previous: &'a Self) -> impl Iterator<Item = Addr> + 'a {
        self.exact.changed(&previous.exact).map(Addr::from_bits)
    }

    /// The prefixes with another class than in `previous`, each once.
    pub(super) fn changed_prefixes(&self, previous: &Self) -> Vec<Prefix> {
        self.prefixes.changed(&previous.prefixes)
    }

    /// Whether nothing has changed since this table was cloned from `other`.
    pub fn is_same(&self, other: &Self) -> bool {
        self.exact.shares_all_with(&other.exact) && self.prefixes.shares_all_with(&other.prefixes)
    }

    /// Sets what is known of an address.
    pub fn insert(&mut self, addr: Addr, endpoint: Endpoint) {
        self.exact.insert(addr.bits(), endpoint);
    }

    /// Forgets an address.
    pub fn remove(&mut self, addr: Addr) {
        self.exact.remove(addr.bits());
    }

    /// Sets the class of the addresses of a prefix that are no endpoint's.
    pub fn insert_prefix(&mut self, prefix: Prefix, class: ClassId) {
        self.prefixes.insert(prefix, class);
    }

    /// Forgets the class of a prefix.
    pub fn remove_prefix(&mut self, prefix: &Prefix) {
        self.prefixes.remove(prefix);
    }

    /// Number of known addresses.
    pub fn len(&self) -> usize {
        self.exact.len()
    }

    /// Whether no address is known.
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty()
    }

    /// All known addresses, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (Addr, &Endpoint)> {
        self.exact.iter().map(|(bits, endpoint)| (Addr::from_bits(bits), endpoint))
    }

    /// All prefixes with a class, in no order.
    pub fn prefixes(&self) -> impl Iterator<Item = (Prefix, ClassId)> {
        self.prefixes.iter().map(|(prefix, class)| (prefix, *class))
    }
}
