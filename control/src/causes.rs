//! Errors in words.

/// An error and its causes. Many messages hold their cause already, which is
/// then not said again.
pub(crate) fn with_causes(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let source = std::io::Error::from_raw_os_error(95);
        let queue = "queue 0: Operation not supported (os error 95)";
        let holding = anyhow::Error::new(source).context(queue).context("eth0");
        assert_eq!(with_causes(&holding), format!("eth0: {queue}"));
        let bare = anyhow::anyhow!("no memory").context("a worker's frames");
        assert_eq!(with_causes(&bare), "a worker's frames: no memory");
    }
}
