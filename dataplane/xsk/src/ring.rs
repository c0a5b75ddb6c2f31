//! The index protocol of AF_XDP's rings: single producer, single consumer,
//! one side of each ring in the kernel.
//!
//! A ring is a power of two of slots and two free-running counters. The
//! producer owns the slots from its counter up to the consumer's plus the
//! size, the consumer those from its own counter up to the producer's. Each
//! side writes its own counter only, after it is done with the slots: storing
//! it with release order, and loading the other's with acquire order, is what
//! passes a slot's contents, and in the fill and completion rings a frame's
//! memory, from one side to the other (Documentation/networking/af_xdp.rst).
//!
//! The protocol is written once, over [`Memory`], so that tests and the model
//! checker can play the kernel's side. Counters from the other side are taken
//! as they come: whatever they say, no slot outside the ring is reached.

/// A counter that both sides see.
pub trait Index {
    /// Loads with acquire order.
    fn load_acquire(&self) -> u32;
    /// Loads with no order.
    fn load_relaxed(&self) -> u32;
    /// Stores with release order.
    fn store_release(&self, value: u32);
    /// A full fence between what comes before and after.
    fn fence();
}

impl Index for std::sync::atomic::AtomicU32 {
    #[inline]
    fn load_acquire(&self) -> u32 {
        self.load(std::sync::atomic::Ordering::Acquire)
    }

    #[inline]
    fn load_relaxed(&self) -> u32 {
        self.load(std::sync::atomic::Ordering::Relaxed)
    }

    #[inline]
    fn store_release(&self, value: u32) {
        self.store(value, std::sync::atomic::Ordering::Release);
    }

    #[inline]
    fn fence() {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }
}

/// The memory of one ring.
///
/// # Safety
/// `size` is a power of two and never changes, and `read` and `write` are
/// sound for every slot below it under the conditions that they name.
pub unsafe trait Memory {
    /// How the counters are shared.
    type Index: Index;
    /// What a slot holds.
    type Item: Copy;

    /// Number of slots.
    fn size(&self) -> u32;
    /// Counts slots that were filled.
    fn producer(&self) -> &Self::Index;
    /// Counts slots that were emptied.
    fn consumer(&self) -> &Self::Index;
    /// `XDP_RING_NEED_WAKEUP` and nothing else so far.
    fn flags(&self) -> &Self::Index;

    /// Reads a slot.
    ///
    /// # Safety
    /// The slot is below [`size`](Self::size) and the caller's side owns it.
    unsafe fn read(&self, slot: u32) -> Self::Item;

    /// Writes a slot.
    ///
    /// # Safety
    /// The slot is below [`size`](Self::size) and the caller's side owns it.
    unsafe fn write(&self, slot: u32, item: Self::Item);
}

/// Whether the other side sleeps and wants to be woken by a system call.
///
/// The fence is for the race with a kernel that is about to sleep: it sets the
/// flag, then looks at the ring once more. Either we see the flag, or it sees
/// what we have published before.
#[inline]
fn wants_waking<M: Memory>(memory: &M) -> bool {
    M::Index::fence();
    memory.flags().load_relaxed() & libc::XDP_RING_NEED_WAKEUP != 0
}

/// The producing side: of a fill or transmit ring.
#[derive(Debug)]
pub struct Producer<M> {
    memory: M,
    /// Where the next item goes; ahead of the shared counter until published.
    next: u32,
    /// The consumer's counter as last seen.
    consumed: u32,
}

impl<M: Memory> Producer<M> {
    /// Takes the producing side of a ring, where the shared counter is.
    pub fn new(memory: M) -> Self {
        let next = memory.producer().load_relaxed();
        let consumed = memory.consumer().load_acquire();
        Self { memory, next, consumed }
    }

    /// Number of slots.
    #[inline]
    pub fn size(&self) -> u32 {
        self.memory.size()
    }

    /// Number of items that fit now. The other side's counter is only loaded
    /// when fewer than `wanted` fit by what is known of it: the load costs a
    /// cache line from another CPU.
    #[inline]
    pub fn room(&mut self, wanted: u32) -> u32 {
        let room = self.known_room();
        if room >= wanted {
            return room;
        }
        self.consumed = self.memory.consumer().load_acquire();
        self.known_room()
    }

    #[inline]
    fn known_room(&self) -> u32 {
        self.memory.size().saturating_sub(self.next.wrapping_sub(self.consumed))
    }

    /// Writes one item, which the other side sees after
    /// [`publish`](Self::publish). `false`, and no change, when the ring is
    /// full by the last call of [`room`](Self::room).
    #[inline]
    pub fn push(&mut self, item: M::Item) -> bool {
        if self.known_room() == 0 {
            return false;
        }
        let slot = self.next & (self.memory.size() - 1);
        // SAFETY: the mask keeps the slot below the size. It is ours: fewer
        // than `size` slots are between the consumer's counter, loaded with
        // acquire order, and `next`.
        unsafe { self.memory.write(slot, item) };
        self.next = self.next.wrapping_add(1);
        true
    }

    /// Gives the other side what was pushed.
    #[inline]
    pub fn publish(&mut self) {
        self.memory.producer().store_release(self.next);
    }

    /// Number of published items that the other side has not taken yet.
    #[inline]
    pub fn pending(&self) -> u32 {
        let published = self.memory.producer().load_relaxed();
        published.wrapping_sub(self.memory.consumer().load_relaxed()).min(self.memory.size())
    }

    /// Whether the other side sleeps and wants to be woken for what was
    /// published before this call.
    #[inline]
    pub fn wants_waking(&self) -> bool {
        wants_waking(&self.memory)
    }
}

/// The consuming side: of a receive or completion ring.
#[derive(Debug)]
pub struct Consumer<M> {
    memory: M,
    /// Where the next item is; ahead of the shared counter until released.
    next: u32,
    /// The producer's counter as last seen.
    produced: u32,
}

impl<M: Memory> Consumer<M> {
    /// Takes the consuming side of a ring, where the shared counter is.
    pub fn new(memory: M) -> Self {
        let next = memory.consumer().load_relaxed();
        let produced = memory.producer().load_acquire();
        Self { memory, next, produced }
    }

    /// Number of items that can be taken now, at least what is known of and up
    /// to the size; the other side's counter is only loaded when that is less
    /// than `wanted`.
    #[inline]
    pub fn available(&mut self, wanted: u32) -> u32 {
        let available = self.known_available();
        if available >= wanted {
            return available;
        }
        self.produced = self.memory.producer().load_acquire();
        self.known_available()
    }

    #[inline]
    fn known_available(&self) -> u32 {
        self.produced.wrapping_sub(self.next).min(self.memory.size())
    }

    /// Takes one item; its slot stays ours until [`release`](Self::release).
    /// `None` when there is none by the last call of
    /// [`available`](Self::available).
    #[inline]
    pub fn pop(&mut self) -> Option<M::Item> {
        if self.known_available() == 0 {
            return None;
        }
        let slot = self.next & (self.memory.size() - 1);
        // SAFETY: the mask keeps the slot below the size. It is ours: `next`
        // is before the producer's counter, loaded with acquire order.
        let item = unsafe { self.memory.read(slot) };
        self.next = self.next.wrapping_add(1);
        Some(item)
    }

    /// Gives the slots of the items that were taken back.
    #[inline]
    pub fn release(&mut self) {
        self.memory.consumer().store_release(self.next);
    }
}

#[cfg(test)]
mod tests;
