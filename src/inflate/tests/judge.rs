//! The decoder and its judges behind one interface.

use zlib_rs::{Inflate, InflateFlush, Status};

use super::bits::bit_offset_head;
use crate::inflate::deflate::{Deflate, Pause};
use crate::sys::inflate::Kernel;

/// How a stream ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// With its last block, after so many bytes of input.
    Complete(usize),
    /// The input is cut off.
    Input,
    /// No more room.
    Output,
    /// The data is wrong.
    Bad,
}

/// A raw deflate stream that begins with the high `bits` of its first byte (0: with the byte), and its history.
pub(super) struct Stream<'a> {
    pub bytes: &'a [u8],
    pub bits: u8,
    pub history: &'a [u8],
}

impl Stream<'_> {
    fn split(&self) -> (Option<u8>, &[u8]) {
        match self.bytes.split_first() {
            Some((&shared, rest)) if self.bits != 0 => (Some(shared), rest),
            _ => (None, self.bytes),
        }
    }

    /// By our decoder: input and output in pieces of these sizes, up to `limit` bytes. What the processor's own
    /// instructions say, the portable ones say, too.
    pub(super) fn ours(&self, in_piece: usize, out_piece: usize, limit: usize) -> (Vec<u8>, End) {
        let portable = self.by(Kernel::PORTABLE, in_piece, out_piece, limit);
        let best = Kernel::detect();
        if best != Kernel::PORTABLE {
            assert!(self.by(best, in_piece, out_piece, limit) == portable, "{best:?} differs from the portable kernel");
        }
        portable
    }

    fn by(&self, kernel: Kernel, in_piece: usize, out_piece: usize, limit: usize) -> (Vec<u8>, End) {
        const CANARY: u8 = 0xa5;
        let mut decoder = Deflate::with(kernel);
        let (shared, input) = self.split();
        decoder.restart(self.bits, shared.unwrap_or(0));
        let start = self.history.len();
        let mut buffer = self.history.to_vec();
        buffer.resize(start + limit, CANARY);
        let (mut at, mut in_at, mut out_end) = (start, 0, start + out_piece.min(limit));
        let end = loop {
            let in_end = input.len().min(in_at + in_piece);
            let step = decoder.run(&input[in_at..in_end], &mut buffer[..out_end], &mut at, 0, usize::MAX);
            in_at += step.consumed;
            assert!(at <= out_end && in_at <= in_end);
            match step.result {
                Err(_) => break End::Bad,
                Ok(Pause::End) => break End::Complete(in_at + usize::from(shared.is_some())),
                Ok(Pause::Input) => {
                    assert_eq!(in_at, in_end, "asks for input before it has taken all");
                    if in_at == input.len() {
                        break End::Input;
                    }
                }
                Ok(Pause::Output) => {
                    assert_eq!(at, out_end, "asks for room before it has filled all");
                    if out_end == buffer.len() {
                        break End::Output;
                    }
                    out_end = buffer.len().min(out_end + out_piece);
                }
                Ok(Pause::Boundary { .. }) => panic!("a boundary that nobody asked for"),
            }
        };
        assert!(buffer[out_end..].iter().all(|&b| b == CANARY), "wrote behind the output");
        assert!(buffer[..start] == *self.history, "wrote into the history");
        (buffer[start..at].to_vec(), end)
    }

    /// By zlib-rs, up to `limit` bytes.
    pub(super) fn zlib(&self, limit: usize) -> (Vec<u8>, End) {
        let mut decoder = Inflate::new(false, 15);
        if !self.history.is_empty() {
            decoder.set_dictionary(self.history).expect("a raw stream takes it at any time");
        }
        let (shared, input) = self.split();
        let head = shared.map(|shared| bit_offset_head(self.bits, shared)).unwrap_or_default();
        let mut out = vec![0; limit];
        for piece in [&head, input] {
            let mut rest = piece;
            loop {
                let (in_before, out_before) = (decoder.total_in(), decoder.total_out());
                let made = usize::try_from(out_before).expect("small");
                let status = decoder.decompress(rest, &mut out[made..], InflateFlush::NoFlush);
                let total = usize::try_from(decoder.total_out()).expect("small");
                let step = usize::try_from(decoder.total_in() - in_before).expect("small");
                rest = &rest[step..];
                let end = match status {
                    Err(_) => Some(End::Bad),
                    Ok(Status::StreamEnd) => {
                        let consumed = usize::try_from(decoder.total_in()).expect("small") - head.len();
                        Some(End::Complete(consumed + usize::from(shared.is_some())))
                    }
                    Ok(_) if total == limit => Some(End::Output),
                    Ok(_) => None,
                };
                if let Some(end) = end {
                    out.truncate(total);
                    return (out, end);
                }
                if step == 0 && total == made {
                    break;
                }
            }
        }
        out.truncate(usize::try_from(decoder.total_out()).expect("small"));
        (out, End::Input)
    }

    /// Our decoder, whatever the sizes of pieces, says what zlib-rs says; gives that.
    pub(super) fn agreed(&self, name: &str, limit: usize) -> (Vec<u8>, End) {
        let (out, end) = self.zlib(limit);
        for (in_piece, out_piece) in [(usize::MAX / 2, limit), (1, limit), (limit + 1, 1), (13, 7), (4096, 1000)] {
            let (ours, our_end) = self.ours(in_piece, out_piece, limit);
            assert!(our_end == end, "{name}: {our_end:?} where zlib-rs says {end:?}, pieces {in_piece} {out_piece}");
            assert!(
                ours == out,
                "{name}: other output, pieces {in_piece} {out_piece}, {} and {}",
                ours.len(),
                out.len()
            );
        }
        (out, end)
    }
}
