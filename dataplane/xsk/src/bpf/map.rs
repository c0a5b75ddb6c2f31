//! BPF maps.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Attribute, Command, address, address_mut, call, call_for_descriptor, object_name};
use crate::mapping::{Mapping, page_size};

/// The kinds of maps in use (`enum bpf_map_type`), with their flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// Keys to values; memory grows with the entries.
    Hash,
    /// Values by number.
    Array,
    /// The same, and user space can map the values.
    MappableArray,
    /// AF_XDP sockets by number: key and value are u32.
    Sockets,
}

impl MapKind {
    const fn number(self) -> u32 {
        match self {
            Self::Hash => 1,
            Self::Array | Self::MappableArray => 2,
            Self::Sockets => 17,
        }
    }

    const fn flags(self) -> u32 {
        match self {
            // BPF_F_NO_PREALLOC
            Self::Hash => 1,
            // BPF_F_MMAPABLE
            Self::MappableArray => 1 << 10,
            Self::Array | Self::Sockets => 0,
        }
    }
}

#[repr(C)]
struct CreateAttribute {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner: u32,
    numa_node: u32,
    name: [u8; 16],
}

// SAFETY: as the BPF_MAP_CREATE part of union bpf_attr.
unsafe impl Attribute for CreateAttribute {}

#[repr(C)]
struct ElementAttribute {
    map: u32,
    padding: u32,
    key: u64,
    /// For BPF_MAP_GET_NEXT_KEY where the next key goes.
    value: u64,
    flags: u64,
}

// SAFETY: as the BPF_MAP_*_ELEM part of union bpf_attr, the padding named.
unsafe impl Attribute for ElementAttribute {}

/// A BPF map. Programs that use it keep it as well.
#[derive(Debug)]
pub struct Map {
    descriptor: OwnedFd,
    key_size: usize,
    value_size: usize,
    max_entries: u32,
}

impl Map {
    /// A new, empty map. Sizes are in bytes.
    ///
    /// # Errors
    /// The kernel's, `EPERM` without the privilege.
    pub fn new(
        kind: MapKind,
        name: &str,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
    ) -> io::Result<Self> {
        let mut attribute = CreateAttribute {
            kind: kind.number(),
            key_size,
            value_size,
            max_entries,
            flags: kind.flags(),
            inner: 0,
            numa_node: 0,
            name: object_name(name),
        };
        // SAFETY: the attribute is the command's and holds no addresses.
        let descriptor = unsafe { call_for_descriptor(Command::MapCreate, &mut attribute) }?;
        let (key_size, value_size) = (key_size as usize, value_size as usize);
        Ok(Self { descriptor, key_size, value_size, max_entries })
    }

    /// The largest number of entries.
    pub fn max_entries(&self) -> u32 {
        self.max_entries
    }

    /// Adds or replaces an entry.
    ///
    /// # Errors
    /// `InvalidInput` when a size does not fit; otherwise the kernel's, such as
    /// `E2BIG` when the map is full.
    pub fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let mut attribute = self.element(key, Some(value))?;
        // SAFETY: the attribute is the command's; key and value are valid for
        // reading the map's sizes, as `element` has checked.
        unsafe { call(Command::MapUpdate, &mut attribute) }?;
        Ok(())
    }

    /// Removes an entry; `false` when there was none.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    pub fn delete(&self, key: &[u8]) -> io::Result<bool> {
        let mut attribute = self.element(key, None)?;
        // SAFETY: the attribute is the command's; the key is valid for reading
        // the map's size, as `element` has checked.
        match unsafe { call(Command::MapDelete, &mut attribute) } {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// An entry's value. Not for maps of one value per CPU, which
    /// [`MapKind`] has none of.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    pub fn lookup(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.value_size];
        let mut attribute = self.element(key, None)?;
        attribute.value = address_mut(&mut value[..]);
        // SAFETY: the attribute is the command's; the key is valid for reading
        // and `value` for writing the map's sizes.
        match unsafe { call(Command::MapLookup, &mut attribute) } {
            Ok(_) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All keys at the moment; entries that come or go meanwhile may be missed.
    ///
    /// # Errors
    /// The kernel's.
    pub fn keys(&self) -> io::Result<Vec<Vec<u8>>> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        // A map that changes can send the walk back to its start; the bound
        // ends it.
        while keys.len() < self.max_entries as usize {
            let mut next = vec![0; self.key_size];
            let mut attribute = ElementAttribute {
                map: self.as_raw_fd() as u32,
                padding: 0,
                key: keys.last().map_or(0, |key| address(&key[..])),
                value: address_mut(&mut next[..]),
                flags: 0,
            };
            // SAFETY: the attribute is the command's; the key is null or valid
            // for reading, `next` for writing the map's key size.
            match unsafe { call(Command::MapNextKey, &mut attribute) } {
                Ok(_) => keys.push(next),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(keys)
    }

    fn element(&self, key: &[u8], value: Option<&[u8]>) -> io::Result<ElementAttribute> {
        let fits =
            key.len() == self.key_size && value.is_none_or(|value| value.len() == self.value_size);
        if !fits {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(ElementAttribute {
            map: self.as_raw_fd() as u32,
            padding: 0,
            key: address(key),
            value: value.map_or(0, address),
            flags: 0,
        })
    }

    /// The values of a [`MapKind::MappableArray`] as memory.
    pub(crate) fn memory(&self) -> io::Result<Memory> {
        // The kernel rounds each value up to eight bytes.
        let len = self.value_size.next_multiple_of(8) * self.max_entries as usize;
        let mapping =
            Mapping::shared(self.descriptor.as_fd(), len.next_multiple_of(page_size()), 0)?;
        Ok(Memory(Arc::new(mapping)))
    }
}

impl AsRawFd for Map {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}

/// The values of an array map, shared with the programs that use it.
#[derive(Clone, Debug)]
pub(crate) struct Memory(Arc<Mapping>);

impl Memory {
    /// The number at an offset in bytes; `None` outside or off a multiple of
    /// eight.
    pub(crate) fn number(&self, offset: usize) -> Option<Number> {
        if !offset.is_multiple_of(8) || offset.checked_add(8)? > self.0.len() {
            return None;
        }
        // SAFETY: the offset is within the mapping.
        let place = unsafe { self.0.start().add(offset) }.cast();
        Some(Number { place, _memory: self.clone() })
    }
}

/// One number in the memory of a map, which it keeps.
#[derive(Debug)]
pub(crate) struct Number {
    place: NonNull<AtomicU64>,
    _memory: Memory,
}

// SAFETY: the memory belongs to the process and goes along; it is only
// accessed atomically.
unsafe impl Send for Number {}

impl Number {
    #[inline]
    pub(crate) fn store(&self, value: u64) {
        self.shared().store(value, Ordering::Relaxed);
    }

    pub(crate) fn load(&self) -> u64 {
        self.shared().load(Ordering::Relaxed)
    }

    #[inline]
    fn shared(&self) -> &AtomicU64 {
        // SAFETY: `Memory::number` made sure that the place is mapped and
        // aligned, and the memory is kept. User space accesses it atomically
        // only, and the kernel a whole number at a time.
        unsafe { self.place.as_ref() }
    }
}
