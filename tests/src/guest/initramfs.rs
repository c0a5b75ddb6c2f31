//! An initramfs put together file by file: a cpio archive in the format "newc"
//! (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Fault;

/// An archive that grows.
#[derive(Debug, Default)]
pub(super) struct Initramfs {
    bytes: Vec<u8>,
    directories: BTreeSet<PathBuf>,
    libraries: BTreeSet<PathBuf>,
    entries: u32,
}

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

impl Initramfs {
    /// Adds a file at an absolute path, and the directories that lead there.
    pub(super) fn file(&mut self, path: impl AsRef<Path>, content: &[u8]) {
        let path = path.as_ref();
        let mut above: Vec<&Path> = path.ancestors().skip(1).collect();
        above.pop();
        for directory in above.into_iter().rev() {
            if self.directories.insert(directory.to_owned()) {
                self.entry(directory, DIRECTORY, &[]);
            }
        }
        self.entry(path, PROGRAM, content);
    }

    /// Adds a program of this machine as `/bin/NAME`, with the shared libraries
    /// that it needs where it looks for them.
    pub(super) fn program(&mut self, name: &str, program: &Path) -> Result<(), Fault> {
        self.file(Path::new("/bin").join(name), &read(program)?);
        for library in libraries(program)? {
            if self.libraries.insert(library.clone()) {
                self.file(&library, &read(&library)?);
            }
        }
        Ok(())
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry(Path::new("/TRAILER!!!"), 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &Path, mode: u32, content: &[u8]) {
        self.entries += 1;
        let name = path.to_string_lossy();
        let name = name.trim_start_matches('/');
        let links = if mode == DIRECTORY { 2 } else { 1 };
        // Inode, mode, owner, group, links, time, size, device numbers (4),
        // length of the name with its zero, checksum (none in this format).
        let (size, name_size) = (content.len() as u32, name.len() as u32 + 1);
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, Fault> {
    fs::read(path).map_err(|error| Fault::new(format!("read {}: {error}", path.display())))
}

/// The shared libraries of a program and its loader, as ldd(1) finds them; none
/// of a static one.
fn libraries(program: &Path) -> Result<Vec<PathBuf>, Fault> {
    let output = Command::new("ldd").arg(program).output();
    let output = output.map_err(|error| Fault::new(format!("run ldd: {error}")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let absolute = |line: &str| {
        let word = line.split_whitespace().find(|word| word.starts_with('/'))?;
        Some(PathBuf::from(word.trim_end_matches(':')))
    };
    Ok(text.lines().filter(|line| line.contains("(0x")).filter_map(absolute).collect())
}
