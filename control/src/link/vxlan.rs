//! The kernel's own vxlan devices, which receive the same packets as we do when
//! we take but copies, and none of them when we take the packets themselves.

use std::collections::BTreeMap;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use tieline_dataplane::wire::Vni;

use super::{LinkError, Netlink};

/// A vxlan device that is up, which is when it listens to its UDP port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receiver {
    /// Its name.
    pub device: String,
    /// The VXLAN network identifier that it takes; nothing if it takes packets
    /// of any (`external` in ip-link(8)).
    pub vni: Option<u32>,
    /// Its UDP port.
    pub port: u16,
}

impl Receiver {
    pub(super) fn read(message: &LinkMessage) -> Option<Self> {
        if !message.header.flags.contains(LinkFlags::Up) {
            return None;
        }
        let name = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        });
        let infos = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        });
        let data = infos?.iter().find_map(|info| match info {
            LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
            _ => None,
        });
        let (mut vni, mut port, mut any) = (None, None, false);
        for datum in data? {
            match datum {
                InfoVxlan::Id(id) => vni = Some(*id),
                InfoVxlan::Port(number) => port = Some(*number),
                InfoVxlan::CollectMetadata(collect) => any = *collect,
                _ => {}
            }
        }
        Some(Self { device: name?, vni: vni.filter(|_| !any), port: port? })
    }

    /// Whether it receives what is sent with this VNI to this UDP port.
    pub fn takes(&self, vni: Vni, port: u16) -> bool {
        self.port == port && self.vni.is_none_or(|own| own == vni.get())
    }
}

impl Netlink {
    /// The kernel's vxlan devices that are up. From now on,
    /// [`Netlink::changed`] tells when they are no longer these.
    pub async fn receivers(&mut self) -> Result<Vec<Receiver>, LinkError> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.requests.dump(request).await;
        let answers = answers.map_err(|refusal| refusal.of("list devices"))?;
        let receivers = answers.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some((link.header.index, Receiver::read(link)?)),
            _ => None,
        });
        let receivers: BTreeMap<u32, Receiver> = receivers.collect();
        self.interest.watch_receivers(receivers.clone());
        Ok(receivers.into_values().collect())
    }
}
