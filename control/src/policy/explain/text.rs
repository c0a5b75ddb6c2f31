//! The answer for people.

use std::fmt;

use super::{Answer, EndpointInfo, IdentityInfo, Side, Staged, Verdict};

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allowed",
            Self::Deny => "denied",
        })
    }
}

impl fmt::Display for EndpointInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.identities.first() {
            None => write!(f, "{}", self.address),
            Some(it) if it.kind == "network-set" => {
                write!(f, "{} (in network set {})", self.address, it.name)
            }
            Some(it) if it.kind == "hypothetical-pod" => {
                write!(f, "a pod {}:{}", it.cluster, it.name)
            }
            Some(it) => write!(f, "{}:{} ({})", it.cluster, it.name, self.address),
        }
    }
}

impl fmt::Display for Answer {
    /// One line with the verdict, then one part per side, and the route.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} -> {}, {}", self.verdict, self.from, self.to, self.protocol)?;
        match (self.port, self.icmp_type, self.icmp_code) {
            (Some(port), ..) => writeln!(f, " port {port}")?,
            (None, Some(kind), Some(code)) => writeln!(f, " type {kind} code {code}")?,
            _ => writeln!(f)?,
        }
        for (name, side) in [("egress", &self.egress), ("ingress", &self.ingress)] {
            match side {
                Some(side) => side.write(f, name)?,
                None => {
                    let end = if name == "egress" { "source" } else { "destination" };
                    writeln!(
                        f,
                        "  {name:<8} not judged here: the {end} is no pod of this cluster"
                    )?;
                }
            }
        }
        match &self.route {
            None => {
                let ends = [&self.from, &self.to].map(|end| end.identities.first());
                let supposed = |it: &IdentityInfo| it.kind == "hypothetical-pod";
                let why = if ends.into_iter().flatten().any(supposed) {
                    "not known: a pod that there is not is on no node"
                } else {
                    "none of ours: the kernel's own routes hold"
                };
                write!(f, "  {:<8} {why}", "route")?;
            }
            Some(route) => {
                write!(f, "  {:<8} {} ", "route", route.prefix)?;
                match (&route.node, &route.cluster, &route.vtep) {
                    (Some(node), Some(cluster), Some(vtep)) => {
                        write!(f, "via node {node} of cluster {cluster}, VTEP {vtep}")?;
                    }
                    (Some(node), Some(cluster), None) => {
                        write!(f, "to node {node} of cluster {cluster}, which has no VTEP")?;
                    }
                    _ => f.write_str("on the node itself")?,
                }
                write!(f, " ({})", route.origin)?;
            }
        }
        for field in &self.ignored {
            write!(f, "\n  note     the field {field:?} means nothing here and was ignored")?;
        }
        Ok(())
    }
}

impl Side {
    fn write(&self, f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
        writeln!(f, "  {name:<8} {}", self.reason)?;
        if let Some(otherwise) = &self.otherwise {
            writeln!(f, "           without that rule it would be {otherwise}")?;
        }
        // What might have denied is of interest to programs at most.
        let misses = self.near_misses.iter().filter(|_| self.verdict == Verdict::Deny);
        for miss in misses {
            writeln!(
                f,
                "           would be allowed by policy {}, rule {}, but {}",
                miss.policy,
                miss.rule,
                miss.failed.join(", and "),
            )?;
        }
        if let Some(Staged { reason, changes, .. }) = &self.staged {
            let same = if *changes { "" } else { " (the same verdict)" };
            let would = match reason.strip_prefix("would be ") {
                Some(would) if would == self.reason => "the same".to_owned(),
                _ => format!("{reason}{same}"),
            };
            writeln!(f, "           with staged policies enforced: {would}")?;
        }
        if let Some(felix) = &self.felix {
            if felix.differs {
                writeln!(f, "           but not in Felix: {}", felix.reason)?;
            } else {
                writeln!(f, "           in Felix: {} (the same verdict)", felix.reason)?;
                for unknown in &felix.unknown {
                    writeln!(f, "             where it may differ: {unknown}")?;
                }
            }
        }
        Ok(())
    }
}
