//! A gzip decoder that stops at deflate block boundaries, which zlib's safe Rust interface cannot do.
//!
//! Wraps the C-shaped interface of libz-rs-sys (zlib-rs, pure Rust): `Z_BLOCK` and `data_type` as zlib.h describes them.

use std::ffi::{CStr, c_int};

use libz_rs_sys as z;

/// Where a call should stop, beside at the end of input, output or member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// Nowhere else (`Z_NO_FLUSH`).
    Nowhere,
    /// At the next block boundary, and after the member header (`Z_BLOCK`).
    BlockBoundary,
}

/// What a call did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// Input bytes consumed, the partly used byte at a boundary included.
    pub consumed: usize,
    /// Output bytes written.
    pub produced: usize,
    /// Where the decoder stands now.
    pub place: Place,
}

/// Where the decoder stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Anywhere else; more input or more room for output is needed.
    Within,
    /// Between two blocks, or between the member header and the first block: a decoder can be started here.
    Boundary {
        /// How many high bits of the last consumed byte belong to the next block, 0..=7.
        bits: u8,
    },
    /// Behind a member whose CRC-32 and length were right. The next call must come after [`GzipBlocks::next_member`].
    MemberEnd,
}

/// Why the stream cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ZlibError {
    /// The bytes are no gzip member, or its checksum is wrong.
    #[error("{reason}")]
    Data {
        /// The engine's words, such as "incorrect data check".
        reason: String,
        /// Input bytes of the failing call that were consumed before the fault showed.
        consumed: usize,
        /// Output bytes that the failing call wrote.
        produced: usize,
    },
    /// The engine refused for a reason that does not lie in the bytes (memory).
    #[error("inflate engine failed with code {code}")]
    Engine {
        /// zlib's return code.
        code: i32,
    },
}

/// A decoder for one gzip member after the other.
pub struct GzipBlocks {
    // On the heap: the engine's state keeps no pointer to it, but zlib's contract lets it.
    stream: Box<z::z_stream>,
}

/// zlib.h: 15 bits of window, plus 16 for a gzip header and trailer.
const GZIP_WINDOW_BITS: c_int = 15 + 16;

impl GzipBlocks {
    /// A decoder before the first byte of a member.
    ///
    /// # Errors
    /// [`ZlibError::Engine`] when there is no memory for the engine's state.
    pub fn new() -> Result<Self, ZlibError> {
        let mut stream = Box::new(z::z_stream::default());
        let size = c_int::try_from(size_of::<z::z_stream>()).unwrap_or(c_int::MAX);
        // SAFETY: the interface is C-shaped. `stream` is a valid z_stream with the library's own allocators, and the
        // version and size are the library's own, so that its layout check holds.
        let code = unsafe { z::inflateInit2_(&raw mut *stream, GZIP_WINDOW_BITS, z::zlibVersion(), size) };
        if code == z::Z_OK { Ok(Self { stream }) } else { Err(ZlibError::Engine { code }) }
    }

    /// Decodes from `input` to `output` until either ends or `stop` is reached.
    ///
    /// # Errors
    /// [`ZlibError::Data`] when the bytes are wrong; the decoder is of no use then.
    pub fn step(&mut self, input: &[u8], output: &mut [u8], stop: Stop) -> Result<Step, ZlibError> {
        let avail_in = u32::try_from(input.len()).unwrap_or(u32::MAX);
        let avail_out = u32::try_from(output.len()).unwrap_or(u32::MAX);
        self.stream.next_in = input.as_ptr().cast_mut();
        self.stream.avail_in = avail_in;
        self.stream.next_out = output.as_mut_ptr();
        self.stream.avail_out = avail_out;
        let flush = match stop {
            Stop::Nowhere => z::Z_NO_FLUSH,
            Stop::BlockBoundary => z::Z_BLOCK,
        };
        // SAFETY: the interface is C-shaped. The state was made by inflateInit2_ in `new`; next_in/avail_in and
        // next_out/avail_out describe `input` (only read) and `output`, both alive and unaliased for the call.
        let code = unsafe { z::inflate(&raw mut *self.stream, flush) };
        let consumed = (avail_in - self.stream.avail_in) as usize;
        let produced = (avail_out - self.stream.avail_out) as usize;
        // No pointer into the caller's buffers outlives the call.
        self.stream.next_in = std::ptr::null_mut();
        self.stream.avail_in = 0;
        self.stream.next_out = std::ptr::null_mut();
        self.stream.avail_out = 0;
        let place = match code {
            z::Z_STREAM_END => Place::MemberEnd,
            // Z_BUF_ERROR is no error: no progress was possible.
            z::Z_OK | z::Z_BUF_ERROR => self.place(),
            z::Z_DATA_ERROR | z::Z_NEED_DICT => {
                return Err(ZlibError::Data { reason: self.reason(), consumed, produced });
            }
            code => return Err(ZlibError::Engine { code }),
        };
        Ok(Step { consumed, produced, place })
    }

    /// Makes ready for the header of the next member.
    ///
    /// # Errors
    /// [`ZlibError::Engine`], which a state made by [`GzipBlocks::new`] does not give.
    pub fn next_member(&mut self) -> Result<(), ZlibError> {
        // SAFETY: the interface is C-shaped; the state was made by inflateInit2_ in `new`.
        let code = unsafe { z::inflateReset(&raw mut *self.stream) };
        if code == z::Z_OK { Ok(()) } else { Err(ZlibError::Engine { code }) }
    }

    /// Reads `data_type`: 128 at a boundary, 64 while in the last block, and the number of unused bits below.
    fn place(&self) -> Place {
        let data_type = self.stream.data_type;
        if data_type & 128 == 0 || data_type & 64 != 0 {
            return Place::Within;
        }
        Place::Boundary { bits: u8::try_from(data_type & 7).unwrap_or(0) }
    }

    fn reason(&self) -> String {
        if self.stream.msg.is_null() {
            return "invalid deflate data".to_owned();
        }
        // SAFETY: zlib's contract: `msg` is null or a static NUL-terminated string; null was excluded above.
        unsafe { CStr::from_ptr(self.stream.msg) }.to_string_lossy().into_owned()
    }
}

impl Drop for GzipBlocks {
    fn drop(&mut self) {
        // SAFETY: the interface is C-shaped; the state was made by inflateInit2_ in `new` and is ended only here.
        let _ = unsafe { z::inflateEnd(&raw mut *self.stream) };
    }
}

// SAFETY: z_stream is not Send only because it holds raw pointers. Those into buffers are nulled after each call, the
// state is owned by this value alone, and the engine and its allocator keep nothing per thread.
unsafe impl Send for GzipBlocks {}
