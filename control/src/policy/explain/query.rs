//! The question: one connection.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use tieline_dataplane::tables::L4;

use super::ExplainError;
use super::hypothetical::HypotheticalPod;
use crate::state::{ClusterId, ObjectName};

/// One connection to explain.
///
/// As JSON: `{"id":1,"from":"a/x","to":"10.1.2.3","protocol":"tcp","port":80}`.
/// Either end may be a pod that there is not, [`HypotheticalPod`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Query {
    /// Comes back in the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Value>,
    /// Where it begins.
    pub from: Asked,
    /// Where it ends.
    pub to: Asked,
    /// IP protocol; TCP unless given.
    #[serde(default)]
    pub protocol: Protocol,
    /// Destination port: TCP, UDP and SCTP need one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Source port; 49152, the first dynamic one (RFC 6335), unless given.
    #[serde(default, alias = "src-port", skip_serializing_if = "Option::is_none")]
    pub src_port: Option<u16>,
    /// ICMP or ICMPv6 type; echo request unless given.
    #[serde(default, alias = "icmp-type", skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    /// ICMP or ICMPv6 code; 0 unless given.
    #[serde(default, alias = "icmp-code", skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    /// Fields that mean nothing here; the answer lists them.
    #[serde(flatten)]
    pub unknown: std::collections::BTreeMap<String, Value>,
}

impl Query {
    /// What rules see of the connection's first packet besides its addresses.
    pub fn l4(&self) -> Result<L4, ExplainError> {
        let protocol = self.protocol.0;
        let refuse = |field, reason| Err(ExplainError::Field { field, reason });
        match protocol {
            Protocol::TCP | Protocol::UDP | Protocol::SCTP => {
                if self.icmp_type.is_some() || self.icmp_code.is_some() {
                    return refuse("icmp_type", "only ICMP has types and codes");
                }
                let Some(destination) = self.port else {
                    return refuse("port", "tcp, udp and sctp need a destination port");
                };
                Ok(L4 { protocol, source: self.src_port.unwrap_or(49152), destination })
            }
            // A port of 0 is how some write that there is none.
            _ if self.port.unwrap_or(0) != 0 || self.src_port.unwrap_or(0) != 0 => {
                refuse("port", "only tcp, udp and sctp have ports")
            }
            Protocol::ICMP | Protocol::ICMPV6 => {
                let echo = if protocol == Protocol::ICMP { 8 } else { 128 };
                if self.icmp_type.is_none() && self.icmp_code.is_some() {
                    return refuse("icmp_code", "a code needs a type");
                }
                let kind = self.icmp_type.unwrap_or(echo);
                let code = self.icmp_code.unwrap_or(0);
                let destination = u16::from_be_bytes([kind, code]);
                Ok(L4 { protocol, source: 0, destination })
            }
            _ if self.icmp_type.is_some() || self.icmp_code.is_some() => {
                refuse("icmp_type", "only ICMP has types and codes")
            }
            _ => Ok(L4 { protocol, source: 0, destination: 0 }),
        }
    }
}

/// An IP protocol, by number (RFC 5237); read and printed by name where it has
/// one here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol(pub u8);

impl Protocol {
    pub(super) const ICMP: u8 = 1;
    pub(super) const TCP: u8 = 6;
    pub(super) const UDP: u8 = 17;
    pub(super) const ICMPV6: u8 = 58;
    pub(super) const SCTP: u8 = 132;
    const NAMES: [(u8, &str); 6] = [
        (Self::TCP, "tcp"),
        (Self::UDP, "udp"),
        (Self::SCTP, "sctp"),
        (Self::ICMP, "icmp"),
        (Self::ICMPV6, "icmpv6"),
        (136, "udplite"),
    ];

    /// Whether packets of the protocol have ports that rules can match.
    pub fn has_ports(self) -> bool {
        [Self::TCP, Self::UDP, Self::SCTP].contains(&self.0)
    }

    /// Whether packets of the protocol have ICMP types.
    pub(super) fn is_icmp(self) -> bool {
        [Self::ICMP, Self::ICMPV6].contains(&self.0)
    }
}

impl Default for Protocol {
    fn default() -> Self {
        Self(Self::TCP)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::NAMES.iter().find(|(number, _)| *number == self.0) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "protocol {}", self.0),
        }
    }
}

impl std::str::FromStr for Protocol {
    type Err = ExplainError;

    /// Reads a name in any case, or a number.
    fn from_str(text: &str) -> Result<Self, ExplainError> {
        let lower = text.to_ascii_lowercase();
        let named = Self::NAMES.iter().find(|(_, name)| *name == lower).map(|(number, _)| *number);
        let digits = lower.bytes().all(|b| b.is_ascii_digit());
        let number = named.or_else(|| lower.parse().ok().filter(|_| digits));
        number.map(Self).ok_or_else(|| ExplainError::Protocol(text.to_owned()))
    }
}

impl Serialize for Protocol {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match Self::NAMES.iter().find(|(number, _)| *number == self.0) {
            Some((_, name)) => serializer.serialize_str(name),
            None => serializer.serialize_u8(self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Protocol {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = match Value::deserialize(deserializer)? {
            Value::Null => return Ok(Self::default()),
            Value::String(text) => text,
            other => other.to_string(),
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// One end of a connection, as it is asked about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Asked {
    /// `namespace/pod`, `cluster:namespace/pod` or an address.
    Known(String),
    /// A pod as it would be.
    Hypothetical(HypotheticalPod),
}

impl Default for Asked {
    fn default() -> Self {
        Self::Known(String::new())
    }
}

impl From<&str> for Asked {
    fn from(text: &str) -> Self {
        Self::Known(text.to_owned())
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(text) => f.write_str(text),
            Self::Hypothetical(pod) => pod.fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for Asked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Self::Known(text)),
            pod @ Value::Object(_) => {
                serde_json::from_value(pod).map(Self::Hypothetical).map_err(D::Error::custom)
            }
            other => Err(D::Error::custom(format!(
                "{other} is no end of a connection: write a text, or an object for a pod that \
                 there is not"
            ))),
        }
    }
}

/// One end of a connection, as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// An address; whatever has it is meant.
    Address(IpAddr),
    /// A pod.
    Pod(ClusterId, ObjectName),
}

impl std::str::FromStr for End {
    type Err = ExplainError;

    fn from_str(text: &str) -> Result<Self, ExplainError> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let (cluster, pod) = match text.split_once(':') {
            Some(("local", pod)) => (ClusterId::Local, pod),
            Some((cluster, pod)) => (ClusterId::Remote(cluster.into()), pod),
            None => (ClusterId::Local, text),
        };
        match pod.split_once('/') {
            Some((namespace, name))
                if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
            {
                let name = ObjectName { namespace: namespace.into(), name: name.into() };
                Ok(Self::Pod(cluster, name))
            }
            _ => Err(ExplainError::End(text.to_owned())),
        }
    }
}
