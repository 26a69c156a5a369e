//! What a completion belongs to, packed into io_uring's 64-bit `user_data`.

/// A tag of a queue of a device slot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct TagId {
    /// The device's place in its ring thread's table.
    pub slot: u32,
    /// Hardware queue.
    pub queue: u16,
    /// Tag.
    pub tag: u16,
}

/// What completed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Token {
    /// The mailbox's eventfd became readable.
    Mailbox,
    /// A fetch or commit: the tag has a request, or is given up.
    Command(TagId),
    /// A piece of a request was read.
    Read {
        /// Index of the request in its ring thread's table.
        request: u32,
        /// Which piece.
        piece: u16,
    },
    /// A request's buffer was written to the character device.
    Write {
        /// Index of the request.
        request: u32,
    },
}

// Bits 61 and 62 say which; bit 63 belongs to the ring.
const KIND_SHIFT: u32 = 61;
const SLOT_MASK: u64 = (1 << 24) - 1;

impl Token {
    pub(super) fn encode(self) -> u64 {
        match self {
            Self::Mailbox => 0,
            Self::Command(TagId { slot, queue, tag }) => {
                1 << KIND_SHIFT | (u64::from(slot) & SLOT_MASK) << 32 | u64::from(queue) << 16 | u64::from(tag)
            }
            Self::Read { request, piece } => 2 << KIND_SHIFT | u64::from(piece) << 32 | u64::from(request),
            Self::Write { request } => 3 << KIND_SHIFT | u64::from(request),
        }
    }

    pub(super) fn decode(user_data: u64) -> Self {
        let low16 = |shift: u32| (user_data >> shift & 0xffff) as u16;
        let request = (user_data & 0xffff_ffff) as u32;
        match user_data >> KIND_SHIFT & 3 {
            0 => Self::Mailbox,
            1 => {
                let slot = (user_data >> 32 & SLOT_MASK) as u32;
                Self::Command(TagId { slot, queue: low16(16), tag: low16(0) })
            }
            2 => Self::Read { request, piece: low16(32) },
            _ => Self::Write { request },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_token_survives_the_ring(slot in 0_u32..1 << 24, queue: u16, tag: u16, request: u32, piece: u16) {
            for token in [
                Token::Mailbox,
                Token::Command(TagId { slot, queue, tag }),
                Token::Read { request, piece },
                Token::Write { request },
            ] {
                let user_data = token.encode();
                prop_assert_eq!(Token::decode(user_data), token);
                prop_assert_eq!(user_data >> 63, 0);
            }
        }
    }
}
