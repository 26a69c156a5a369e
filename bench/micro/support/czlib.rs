//! C zlib, as fast as it goes: whole input, large output buffers, state reused.

use std::ffi::c_int;

use libz_sys as z;

/// C zlib's inflate.
pub struct CZlib {
    stream: Box<z::z_stream>,
}

impl CZlib {
    /// With zlib's window bits: -15 for raw deflate, 31 for gzip.
    pub fn new(window_bits: c_int) -> Self {
        let mut stream = Box::new(std::mem::MaybeUninit::<z::z_stream>::zeroed());
        // SAFETY: the C interface. inflateInit2_ reads the (null) input and allocator fields and sets the rest; a null
        // allocator means malloc. z_stream holds function pointers as Rust non-null types, so it is only
        // taken for initialized after the call has set them.
        let stream = unsafe {
            let size = c_int::try_from(size_of::<z::z_stream>()).expect("small");
            let code = z::inflateInit2_(stream.as_mut().as_mut_ptr().cast(), window_bits, z::zlibVersion(), size);
            assert_eq!(code, z::Z_OK);
            Box::from_raw(Box::into_raw(stream).cast::<z::z_stream>())
        };
        Self { stream }
    }

    /// Inflates one span from its checkpoint, as SOCI does; gives the bytes made.
    pub fn span(&mut self, blob: &[u8], bits: u8, window: Option<&[u8]>, output: &mut [u8]) -> usize {
        let mut input = blob;
        // SAFETY: the C interface; `stream` was made by inflateInit2_, and the window lives for the call.
        unsafe {
            assert_eq!(z::inflateReset(&raw mut *self.stream), z::Z_OK);
            if bits != 0 {
                let (&shared, rest) = blob.split_first().expect("a span is not empty");
                input = rest;
                let value = c_int::from(shared >> (8 - bits));
                assert_eq!(z::inflatePrime(&raw mut *self.stream, c_int::from(bits), value), z::Z_OK);
            }
            if let Some(window) = window {
                let len = u32::try_from(window.len()).expect("32 KiB");
                assert_eq!(z::inflateSetDictionary(&raw mut *self.stream, window.as_ptr(), len), z::Z_OK);
            }
        }
        self.step(&mut input, output).1
    }

    /// Inflates a whole gzip member through one output buffer; gives the bytes made.
    pub fn member(&mut self, blob: &[u8], output: &mut [u8]) -> usize {
        // SAFETY: the C interface; `stream` was made by inflateInit2_.
        assert_eq!(unsafe { z::inflateReset(&raw mut *self.stream) }, z::Z_OK);
        let (mut input, mut total) = (blob, 0);
        loop {
            let (code, made) = self.step(&mut input, output);
            total += made;
            if code == z::Z_STREAM_END {
                return total;
            }
        }
    }

    fn step(&mut self, input: &mut &[u8], output: &mut [u8]) -> (c_int, usize) {
        let room = u32::try_from(output.len()).expect("small buffers");
        self.stream.next_in = input.as_ptr().cast_mut();
        self.stream.avail_in = u32::try_from(input.len()).expect("small layers");
        self.stream.next_out = output.as_mut_ptr();
        self.stream.avail_out = room;
        // SAFETY: the C interface; the pointers and lengths describe live buffers.
        let code = unsafe { z::inflate(&raw mut *self.stream, z::Z_NO_FLUSH) };
        assert!(matches!(code, z::Z_OK | z::Z_STREAM_END), "C zlib failed: {code}");
        *input = &input[input.len() - self.stream.avail_in as usize..];
        (code, (room - self.stream.avail_out) as usize)
    }
}

impl Drop for CZlib {
    fn drop(&mut self) {
        // SAFETY: the C interface; `stream` was made by inflateInit2_ and is ended once.
        unsafe { z::inflateEnd(&raw mut *self.stream) };
    }
}
