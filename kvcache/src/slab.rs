//! A vector with holes: values keep their `u32` index while they live, holes are reused.
//!
//! Nodes, trees and leases refer to each other in circles, so they are named by index instead of by
//! `Rc`: an index is a quarter of the size, is `Send`, and costs no count. Nothing guards against an
//! index used after its value is gone, so owners remove every reference first and `check()` looks.

use std::ops::{Index, IndexMut};

pub(crate) struct Slab<T> {
    slots: Vec<Option<T>>,
    holes: Vec<u32>,
}

impl<T> Slab<T> {
    pub fn new() -> Self {
        Self { slots: Vec::new(), holes: Vec::new() }
    }

    pub fn insert(&mut self, value: T) -> u32 {
        if let Some(index) = self.holes.pop() {
            self.slots[index as usize] = Some(value);
            return index;
        }
        let index = u32::try_from(self.slots.len()).expect("a slab holds fewer than 2^32 values");
        self.slots.push(Some(value));
        index
    }

    pub fn remove(&mut self, index: u32) -> T {
        let value = self.slots[index as usize].take().expect("slab slot is in use");
        self.holes.push(index);
        value
    }

    pub fn get(&self, index: u32) -> Option<&T> {
        self.slots.get(index as usize)?.as_ref()
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.holes.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.slots.iter().enumerate().filter_map(|(i, slot)| Some((i as u32, slot.as_ref()?)))
    }

    /// Bytes of the slots themselves, holes included.
    pub fn bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Option<T>>() + self.holes.capacity() * size_of::<u32>()
    }
}

impl<T> Index<u32> for Slab<T> {
    type Output = T;

    fn index(&self, index: u32) -> &T {
        self.slots[index as usize].as_ref().expect("slab slot is in use")
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, index: u32) -> &mut T {
        self.slots[index as usize].as_mut().expect("slab slot is in use")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_is_reused_and_others_keep_their_index() {
        let mut slab = Slab::new();
        let (a, b) = (slab.insert('a'), slab.insert('b'));
        assert_eq!(slab.remove(a), 'a');
        assert_eq!(slab.insert('c'), a);
        assert_eq!((slab[b], slab[a], slab.len()), ('b', 'c', 2));
    }

    #[test]
    #[should_panic(expected = "slab slot is in use")]
    fn a_removed_value_cannot_be_read() {
        let mut slab = Slab::new();
        let a = slab.insert('a');
        slab.remove(a);
        let _ = slab[a];
    }
}
