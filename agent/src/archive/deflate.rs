//! Deflating in blocks that stand for themselves, so that several threads can work on one file: each block ends at a byte, and the
//! stream ends with [`LAST`]. Repeats are looked for where there are some: to look is what takes the time.

use flate2::{Compress, Compression, FlushCompress, Status};

use super::literals::{self, Counts};

/// Bytes of a block.
pub(super) const BLOCK: usize = 1024 * 1024;
/// An empty block that says that it is the last.
pub(super) const LAST: [u8; 2] = [3, 0];

/// Bytes looked at to tell whether deflating is worth its while: so many from each of so many places.
const SAMPLE: usize = 2_048;
const PLACES: usize = 8;
/// Bits a byte from which on it is not: pictures, films and archives have 7.9 and more, text about 5, programs about 6.
const DENSE: f64 = 7.85;
/// Bytes of a block in which repeats are looked for first.
const PROBE: usize = 128 * 1024;
/// Where so few were found, as many more bytes are packed without a look; then comes a probe again.
const UNPROBED: usize = 3 * PROBE;
/// What finding repeats has to save of the bytes that are left without, to be worth its time: one part of so many.
const WORTH: usize = 50;
/// Too few bytes to tell.
const SMALL: usize = 4_096;
/// What a stored block holds at most, and what it costs.
const STORED_BYTES: usize = 65_535;
const STORED_COST: usize = 5;

/// One thread's compressor.
#[derive(Debug)]
pub(super) struct Deflater {
    compress: Compress,
}

/// A fault of the compressor; none is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault;

impl Deflater {
    /// At the level zip has, too.
    pub(super) fn new() -> Self {
        Self { compress: Compress::new(Compression::new(6), false) }
    }

    /// A whole stream; `None` if it would be no smaller than what it is made of.
    pub(super) fn whole(&mut self, input: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        if dense(input) {
            return Ok(None);
        }
        self.compress.reset();
        let mut out = Vec::with_capacity(input.len());
        let status = self.compress.compress_vec(input, &mut out, FlushCompress::Finish).map_err(|_| Fault)?;
        // Otherwise it did not fit.
        Ok((status == Status::StreamEnd && out.len() < input.len()).then_some(out))
    }

    /// A piece of a stream.
    pub(super) fn block(&mut self, input: &[u8]) -> Result<Vec<u8>, Fault> {
        if dense(input) {
            return Ok(stored(input));
        }
        self.compress.reset();
        let mut out = Vec::with_capacity(input.len() + (input.len() / 1_024) + 128);
        let mut rest = input;
        while !rest.is_empty() {
            let (probe, behind) = rest.split_at(rest.len().min(PROBE));
            let before = out.len();
            if !self.deflate(probe, &mut out)? {
                return Ok(stored(input));
            }
            let without = Counts::of(probe).cost();
            if out.len() - before < without - without / WORTH {
                // It repeats itself: the search goes on where it is.
                let fits = behind.is_empty() || self.deflate(behind, &mut out)?;
                return Ok(if fits { out } else { stored(input) });
            }
            let (unprobed, behind) = behind.split_at(behind.len().min(UNPROBED));
            if !unprobed.is_empty() {
                out.extend(literals::encode(unprobed));
                self.compress.reset();
            }
            rest = behind;
        }
        Ok(out)
    }

    /// More of a stream, up to a byte. `false`: there is too little room for it, which deflate never needs more of than storing does.
    fn deflate(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<bool, Fault> {
        let before = self.compress.total_in();
        self.compress.compress_vec(input, out, FlushCompress::Sync).map_err(|_| Fault)?;
        // A flush is complete when there was room left behind it.
        Ok(self.compress.total_in() - before == input.len() as u64 && out.len() < out.capacity())
    }
}

/// As it is, in blocks that say so.
fn stored(input: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(input.len() + (input.len() / STORED_BYTES + 1) * STORED_COST);
    for piece in input.chunks(STORED_BYTES) {
        let length = piece.len() as u16;
        out.push(0);
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&(!length).to_le_bytes());
        out.extend_from_slice(piece);
    }
    out
}

/// Whether its bytes are spread so evenly that deflating gains nothing: it is compressed or encrypted already.
fn dense(input: &[u8]) -> bool {
    if input.len() < SMALL {
        return false;
    }
    let mut counts = [0u32; 256];
    let mut seen = 0u32;
    let step = (input.len() / PLACES).max(SAMPLE);
    for start in (0..input.len()).step_by(step) {
        for byte in &input[start..input.len().min(start + SAMPLE)] {
            counts[usize::from(*byte)] += 1;
            seen += 1;
        }
    }
    let seen = f64::from(seen);
    let bits: f64 = counts
        .iter()
        .filter(|n| **n > 0)
        .map(|n| -f64::from(*n) / seen * (f64::from(*n) / seen).log2())
        .sum();
    bits > DENSE
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;

    pub(in crate::archive) fn inflate(data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        flate2::read::DeflateDecoder::new(data).read_to_end(&mut out).unwrap();
        out
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(7);
        (0..length).map(|_| random.u8(..)).collect()
    }

    #[test]
    fn what_is_compressed_already_is_stored() {
        let noise = noise(200_000);
        assert_eq!(Deflater::new().whole(&noise).unwrap(), None);
        let stored = Deflater::new().block(&noise).unwrap();
        assert_eq!(stored.len(), noise.len() + 4 * STORED_COST);
        assert_eq!(Deflater::new().whole(b"xyz").unwrap(), None, "three bytes cannot shrink");
    }

    #[test]
    fn blocks_of_all_kinds_make_one_stream() {
        let blocks = [
            vec![0; BLOCK],
            noise(BLOCK),
            b"a".to_vec(),
            "text and more text ".repeat(9_999).into(),
            noise(5_000),
        ];
        let mut deflater = Deflater::new();
        let mut stream: Vec<u8> = blocks.iter().flat_map(|block| deflater.block(block).unwrap()).collect();
        stream.extend(LAST);
        assert!(inflate(&stream) == blocks.concat());
    }

    /// Numbers as floats have them: their first byte is one of a few, the others are anything.
    fn numbers(length: usize) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(5);
        (0..length).map(|i| if i % 4 == 3 { 60 + random.u8(..4) } else { random.u8(..) >> (i % 2) }).collect()
    }

    #[test]
    fn what_does_not_repeat_itself_is_packed_as_well_without_a_search() {
        let numbers = numbers(BLOCK);
        let mut deflater = Deflater::new();
        let searched = deflater.whole(&numbers).unwrap().unwrap();
        let mut stream = deflater.block(&numbers).unwrap();
        assert!(
            stream.len() <= searched.len() + searched.len() / WORTH,
            "{} {}",
            stream.len(),
            searched.len()
        );
        stream.extend(LAST);
        assert!(inflate(&stream) == numbers);
    }

    #[test]
    fn a_hole_takes_no_room() {
        let packed = Deflater::new().block(&[0; BLOCK]).unwrap();
        assert!(packed.len() < BLOCK / 500, "{}", packed.len());
    }

    #[test]
    fn where_repeats_begin_in_mid_block_they_are_found_again() {
        let text = "text and more text ".repeat(50_000).into_bytes();
        let block = [numbers(BLOCK - text.len().min(BLOCK / 2)), text].concat();
        let block = &block[..BLOCK];
        let mut deflater = Deflater::new();
        let mut stream = deflater.block(block).unwrap();
        assert!(stream.len() < BLOCK - BLOCK / 8, "{}", stream.len());
        stream.extend(LAST);
        assert!(inflate(&stream) == block);
    }

    proptest! {
        #[test]
        fn whatever_goes_in_comes_out(input in prop::collection::vec(any::<u8>(), 0..20_000), repeat in 1usize..4) {
            let input = input.repeat(repeat);
            let mut deflater = Deflater::new();
            if let Some(stream) = deflater.whole(&input).unwrap() {
                prop_assert!(stream.len() < input.len());
                prop_assert_eq!(&inflate(&stream), &input);
            }
            let stream = [deflater.block(&input).unwrap(), LAST.to_vec()].concat();
            prop_assert_eq!(&inflate(&stream), &input);
        }
    }
}
