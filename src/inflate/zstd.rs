//! zstd streams (RFC 8878): frames one after the other, with skippable frames between them. libzstd decodes the frames; where
//! they begin and end, and what lies between, is found here.

mod indexer;
mod span;
#[cfg(test)]
mod tests;

pub use indexer::ZstdIndexer;
pub(super) use span::{Once, Reading};

use ::zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, get_error_name};

use super::DataFault;
use crate::units::{u64_from_usize, usize_from_u64};

/// The longest window that a frame may need, as a power of two: 128 MiB, which is what `zstd -d` takes without being told to
/// take more, and the longest that its `--long` makes.
pub const MAX_WINDOW_LOG: u32 = 27;

/// Layer bytes are handed on in pieces of at most this size.
const PIECE_BYTES: usize = 256 * 1024;

/// The longest frame header, without its magic number.
const HEADER_BYTES: usize = 14;

const FRAME_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Error codes of libzstd that are told apart; its `zstd_errors.h` pins their numbers.
const WINDOW_TOO_LARGE: usize = 16;
const DICTIONARY_WRONG: usize = 32;

/// What a stream shows, in order.
pub(super) enum Event<'a> {
    /// A frame begins so many bytes into the stream.
    Frame { at: u64, skippable: bool },
    /// What the frame holds.
    Bytes(&'a [u8]),
}

/// Why a stream cannot go on.
#[derive(Debug)]
pub(super) enum Failure<E> {
    /// The frame that begins at `frame` is none, or is damaged.
    Data { frame: u64, reason: DataFault },
    /// Who hears the events wants no more.
    Heard(E),
}

/// What the next byte is.
#[derive(Clone, Copy)]
enum State {
    /// Part of a frame's first bytes, of which so many are here.
    Head(usize),
    Frame,
    Skippable {
        left: u64,
    },
}

/// The first bytes of a frame behind its magic number: how long its content will be, if it says so.
#[derive(Default)]
struct Header {
    bytes: [u8; HEADER_BYTES],
    have: usize,
}

impl Header {
    fn take(&mut self, input: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(self.have).zip(input) {
            *to = *from;
            self.have += 1;
        }
    }

    /// RFC 8878, 3.1.1.1: a descriptor, perhaps a window, perhaps a dictionary's number, perhaps the length.
    fn content_bytes(&self) -> Option<u64> {
        let here = self.bytes.get(..self.have)?;
        let descriptor = *here.first()?;
        let single_segment = descriptor & 0x20 != 0;
        let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
        let len = match descriptor >> 6 {
            0 => usize::from(single_segment),
            1 => 2,
            2 => 4,
            _ => 8,
        };
        let at = 1 + usize::from(!single_segment) + dictionary;
        let field = here.get(at..at + len).filter(|field| !field.is_empty())?;
        let value = field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        Some(if len == 2 { value + 256 } else { value })
    }
}

/// Takes a stream in pieces.
pub(super) struct Frames {
    decoder: Option<DCtx<'static>>,
    state: State,
    /// First bytes of a frame: its magic number and, of a skippable one, its length.
    head: [u8; 8],
    /// What comes behind the magic number, and how much has come out of the frame.
    header: Header,
    made: u64,
    out: Box<[u8]>,
    /// Bytes taken.
    at: u64,
    /// Where the present frame begins.
    frame: u64,
}

impl Frames {
    pub(super) fn new() -> Self {
        let out = vec![0; PIECE_BYTES].into();
        Self {
            decoder: None,
            state: State::Head(0),
            head: [0; 8],
            header: Header::default(),
            made: 0,
            out,
            at: 0,
            frame: 0,
        }
    }

    /// Bytes taken so far.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Whether the stream may end here.
    pub(super) fn is_between_frames(&self) -> bool {
        matches!(self.state, State::Head(0))
    }

    /// Takes the next bytes and tells what comes of them. After a failure it is of no use.
    pub(super) fn push<E>(
        &mut self,
        mut input: &[u8],
        hear: &mut dyn FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), Failure<E>> {
        while !input.is_empty() {
            let taken = match self.state {
                State::Head(have) => self.head(have, input, hear)?,
                State::Skippable { left } => {
                    let taken = usize_from_u64(left).map_or(input.len(), |left| left.min(input.len()));
                    let left = left - u64_from_usize(taken);
                    self.state = if left == 0 { State::Head(0) } else { State::Skippable { left } };
                    taken
                }
                State::Frame => self.decode(input, hear)?,
            };
            self.at += u64_from_usize(taken);
            input = input.get(taken..).unwrap_or_default();
        }
        Ok(())
    }

    /// Takes first bytes of a frame; gives how many.
    fn head<E>(
        &mut self,
        have: usize,
        input: &[u8],
        hear: &mut dyn FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<usize, Failure<E>> {
        if have == 0 {
            self.frame = self.at;
        }
        // The length is only read of what has been found to be skippable.
        let wanted = if have < 4 { 4 } else { 8 };
        let taken = (wanted - have).min(input.len());
        for (to, from) in self.head.iter_mut().skip(have).zip(input.iter().take(taken)) {
            *to = *from;
        }
        let have = have + taken;
        self.state = State::Head(have);
        if have < wanted {
            return Ok(taken);
        }
        let [m0, m1, m2, m3, length @ ..] = self.head;
        let at = self.frame;
        match ([m0, m1, m2, m3], have) {
            (FRAME_MAGIC, _) => {
                hear(Event::Frame { at, skippable: false }).map_err(Failure::Heard)?;
                self.state = State::Frame;
                (self.header, self.made) = (Header::default(), 0);
                self.begin()?;
            }
            ([0x50..=0x5f, 0x2a, 0x4d, 0x18], 4) => {
                hear(Event::Frame { at, skippable: true }).map_err(Failure::Heard)?;
            }
            ([0x50..=0x5f, 0x2a, 0x4d, 0x18], _) => {
                let left = u64::from(u32::from_le_bytes(length));
                self.state = if left == 0 { State::Head(0) } else { State::Skippable { left } };
            }
            _ => return Err(Failure::Data { frame: at, reason: DataFault::NotZstd }),
        }
        Ok(taken)
    }

    /// Has the decoder take the magic number that is here already.
    fn begin<E>(&mut self) -> Result<(), Failure<E>> {
        let frame = self.frame;
        let failed = |code| Failure::Data { frame, reason: fault(code) };
        if self.decoder.is_none() {
            let no_memory = Failure::Data { frame, reason: DataFault::Zstd { what: "not enough memory" } };
            let mut decoder = DCtx::try_create().ok_or(no_memory)?;
            decoder.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG)).map_err(failed)?;
            self.decoder = Some(decoder);
        }
        if let Some(decoder) = &mut self.decoder {
            let mut from = InBuffer::around(&FRAME_MAGIC);
            decoder.decompress_stream(&mut OutBuffer::around(&mut *self.out), &mut from).map_err(failed)?;
        }
        Ok(())
    }

    /// Takes bytes of a frame; gives how many: all, unless the frame ends.
    fn decode<E>(
        &mut self,
        input: &[u8],
        hear: &mut dyn FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<usize, Failure<E>> {
        let frame = self.frame;
        self.header.take(input);
        let Some(decoder) = &mut self.decoder else { return Ok(input.len()) };
        let mut from = InBuffer::around(input);
        loop {
            let mut to = OutBuffer::around(&mut *self.out);
            let hint = decoder.decompress_stream(&mut to, &mut from);
            let hint = hint.map_err(|code| Failure::Data { frame, reason: fault(code) })?;
            let made = to.pos();
            self.made += u64_from_usize(made);
            if made > 0 {
                hear(Event::Bytes(self.out.get(..made).unwrap_or_default())).map_err(Failure::Heard)?;
            }
            if hint == 0 {
                // In a stream that ends with an empty block libzstd leaves that out; other readers do not.
                if self.header.content_bytes().is_some_and(|announced| announced != self.made) {
                    let what = "content of another length than its header says";
                    return Err(Failure::Data { frame, reason: DataFault::Zstd { what } });
                }
                self.state = State::Head(0);
                return Ok(from.pos());
            }
            // Output may be waiting when the input is used up.
            if from.pos() == input.len() && made < self.out.len() {
                return Ok(input.len());
            }
        }
    }
}

fn fault(code: usize) -> DataFault {
    match 0_usize.wrapping_sub(code) {
        WINDOW_TOO_LARGE => DataFault::Window,
        DICTIONARY_WRONG => DataFault::Dictionary,
        _ => DataFault::Zstd { what: get_error_name(code) },
    }
}
