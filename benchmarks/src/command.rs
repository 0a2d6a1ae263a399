//! What is replicated, and the state machine that every replica of every system folds it into.

use std::fmt::Debug;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A command as a client of a replicated state machine would make it.
pub trait Command: Clone + Debug + Send + Sync + Unpin + 'static {
    /// The command with this number. Numbers count from zero within a measurement.
    fn numbered(number: u64) -> Self;
    fn as_slice(&self) -> &[u8];
}

/// A command carried by value.
#[derive(Clone, Copy, Debug)]
pub struct Fixed<const SIZE: usize>([u8; SIZE]);

impl<const SIZE: usize> Command for Fixed<SIZE> {
    fn numbered(number: u64) -> Self {
        let mut bytes = [0; SIZE];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        bytes[SIZE - 8..].copy_from_slice(&(!number).to_le_bytes());
        Self(bytes)
    }

    fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

/// A command in a shared, counted buffer.
#[derive(Clone, Debug)]
pub struct Counted<const SIZE: usize>(Bytes);

impl<const SIZE: usize> Counted<SIZE> {
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl<const SIZE: usize> Command for Counted<SIZE> {
    fn numbered(number: u64) -> Self {
        // `from_owner` puts the count and the bytes into one allocation; `from(Vec)` would
        // allocate a second time when the buffer is first shared.
        Self(Bytes::from_owner(Fixed::<SIZE>::numbered(number).0))
    }

    fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

/// The state machine: how many commands it applied, and a digest that depends on their content
/// and order. It is cheap on purpose, so that it does not hide what is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub count: u64,
    pub digest: u64,
}

impl State {
    #[inline]
    pub fn apply(&mut self, command: &[u8]) {
        let word = word_at(command, 0) ^ word_at(command, command.len() - 8).rotate_left(32);
        // Only a rotation and an addition depend on the command before; the product does not.
        self.digest =
            self.digest.rotate_left(5).wrapping_add(word.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        self.count += 1;
    }
}

#[inline]
fn word_at(bytes: &[u8], position: usize) -> u64 {
    let word = bytes[position..position + 8].try_into().expect("a slice of 8 bytes");
    u64::from_le_bytes(word)
}
