//! What becomes of a frame, and every reason to drop one.

/// The fate of a frame after a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send it over the underlay.
    Forward,
    /// Deliver it to this node through the gateway.
    Local,
    /// Drop it and count why.
    Drop(DropReason),
}

/// Defines [`DropReason`] once: variant, metric label, help text.
macro_rules! drop_reasons {
    ($($variant:ident $label:literal $help:literal;)*) => {
        /// Why a frame was dropped: one value per cause.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason {
            $(#[doc = $help] $variant,)*
        }

        impl DropReason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The label in metrics and in machine-readable output.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }

            /// What it means, for a person.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)* }
            }
        }
    };
}

drop_reasons! {
    OuterTruncated "outer_truncated" "the outer headers do not fit the frame";
    OuterMalformed "outer_malformed" "the outer headers are not VXLAN over UDP over IP";
    OuterChecksum "outer_checksum" "an outer checksum is wrong";
    OuterNotOurs "outer_not_ours" "the outer destination is not one of this node's underlay addresses";
    UnknownVtep "unknown_vtep" "the outer source is not a known VTEP";
    UnknownVni "unknown_vni" "the VXLAN network identifier is not the overlay's";
    EcnInvalid "ecn_invalid" "congestion was marked on a packet that cannot carry the mark (RFC 6040)";
    InnerMac "inner_mac" "the inner destination MAC is not this node's VTEP";
    InnerTruncated "inner_truncated" "the inner headers do not fit the frame";
    InnerMalformed "inner_malformed" "the inner headers contradict themselves";
    InnerChecksum "inner_checksum" "the inner IPv4 header checksum is wrong";
    InnerUnsupported "inner_unsupported" "the inner frame carries neither IPv4 nor IPv6";
    NeverForwarded "never_forwarded" "the inner source or destination is loopback, link-local, multicast, broadcast or unspecified";
    SourceNotOwned "source_not_owned" "the inner source is not an address of the node that sent it";
    DestinationNotLocal "destination_not_local" "the inner destination is not an address of this node";
    SourceNotLocal "source_not_local" "a packet from this node has a source that is not an address of this node";
    DestinationLocal "destination_local" "a packet for an address of this node arrived at the gateway";
    NoRoute "no_route" "no remote cluster or node owns the destination";
    NoVtep "no_vtep" "the destination's node has no VTEP";
    NoAdjacency "no_adjacency" "the underlay's next hop towards the VTEP is not resolved";
    EgressDenied "egress_denied" "the policy of the local source denies it";
    IngressDenied "ingress_denied" "the policy of the local destination denies it";
    FragmentUnmatched "fragment_unmatched" "a fragment arrived before the first one of its packet, or long after it";
    FlowTableFull "flow_table_full" "no place is left for a new flow";
    FlowBusy "flow_busy" "the flow's entry was being written";
    NoHeadroom "no_headroom" "the frame has no room for the outer headers";
    TooBig "too_big" "the packet with its outer headers is longer than IP allows";
    TransmitFull "transmit_full" "the device did not take the frame";
}

impl DropReason {
    /// Number of reasons.
    pub const COUNT: usize = Self::ALL.len();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_labels_are_unique() {
        for (at, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, at);
            assert!(!reason.help().is_empty());
        }
        let mut labels: Vec<_> = DropReason::ALL.iter().map(|reason| reason.label()).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), DropReason::COUNT);
    }
}
