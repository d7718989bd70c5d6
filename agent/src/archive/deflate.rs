//! Deflates in independent blocks, so that several threads can work on one file. Each block ends at
//! a byte boundary, and [`FINAL_BLOCK`] ends the stream.
//!
//! Searching for repeats takes most of the time. A block is therefore probed first, and searched
//! only where repeats occur.

use flate2::{Compress, Compression, FlushCompress, Status};

use super::huffman::{self, ByteCounts};

pub(super) const BLOCK_BYTES: usize = 1024 * 1024;
/// An empty deflate block with the final bit set.
pub(super) const FINAL_BLOCK: [u8; 2] = [3, 0];

/// Bytes of each of the [`SAMPLES`] samples that decide whether an input is deflated.
const SAMPLE_BYTES: usize = 2_048;
const SAMPLES: usize = 8;
/// Entropy in bits per byte above which data is stored. Images, video and archives have 7.9 and
/// more, text about 5, programs about 6.
const DENSE_BITS: f64 = 7.85;
/// Bytes of a probe, which are searched for repeats.
const PROBE_BYTES: usize = 128 * 1024;
/// Bytes after a probe without repeats that are Huffman-coded without a search. The next probe
/// follows them.
const UNPROBED_BYTES: usize = 3 * PROBE_BYTES;
/// Reciprocal of the part that a search must save, compared with Huffman coding alone, to be worth
/// its time. 50 means 2 %.
const MIN_GAIN_DIVISOR: usize = 50;
/// Smaller inputs are always deflated, because they are too short for samples.
const MIN_SAMPLED_BYTES: usize = 4_096;
/// Payload limit of a stored deflate block in bytes. [`STORED_OVERHEAD`] is its header.
const STORED_BYTES: usize = 65_535;
const STORED_OVERHEAD: usize = 5;

/// Compressor with its buffers, owned by one thread.
#[derive(Debug)]
pub(super) struct Deflater {
    compress: Compress,
}

/// An error of the compressor, which reports no cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DeflateFault;

impl Deflater {
    /// Creates a compressor of level 6, the default of Info-ZIP.
    pub(super) fn new() -> Self {
        Self { compress: Compress::new(Compression::new(6), false) }
    }

    /// Compresses `input` into a whole stream. Returns `None` if the stream would not be smaller
    /// than `input`.
    pub(super) fn compress_whole(&mut self, input: &[u8]) -> Result<Option<Vec<u8>>, DeflateFault> {
        if is_incompressible(input) {
            return Ok(None);
        }
        self.compress.reset();
        let mut out = Vec::with_capacity(input.len());
        let status =
            self.compress.compress_vec(input, &mut out, FlushCompress::Finish).map_err(|_| DeflateFault)?;
        // With another status the output did not fit its buffer.
        Ok((status == Status::StreamEnd && out.len() < input.len()).then_some(out))
    }

    /// Compresses one block of a stream. The result ends at a byte boundary.
    pub(super) fn compress_block(&mut self, input: &[u8]) -> Result<Vec<u8>, DeflateFault> {
        if is_incompressible(input) {
            return Ok(store(input));
        }
        self.compress.reset();
        let mut out = Vec::with_capacity(input.len() + (input.len() / 1_024) + 128);
        let mut rest = input;
        while !rest.is_empty() {
            let (probe, behind) = rest.split_at(rest.len().min(PROBE_BYTES));
            let before = out.len();
            if !self.deflate(probe, &mut out)? {
                return Ok(store(input));
            }
            let without = ByteCounts::of(probe).cost();
            if out.len() - before < without - without / MIN_GAIN_DIVISOR {
                // The probe found repeats, so the rest is searched as well.
                let fits = behind.is_empty() || self.deflate(behind, &mut out)?;
                return Ok(if fits { out } else { store(input) });
            }
            let (unprobed, behind) = behind.split_at(behind.len().min(UNPROBED_BYTES));
            if !unprobed.is_empty() {
                out.extend(huffman::encode(unprobed));
                self.compress.reset();
            }
            rest = behind;
        }
        Ok(out)
    }

    /// Appends `input` to the stream and flushes to a byte boundary. Returns `false` if `out` is
    /// too small, which means that storing takes no more bytes.
    fn deflate(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<bool, DeflateFault> {
        let before = self.compress.total_in();
        self.compress.compress_vec(input, out, FlushCompress::Sync).map_err(|_| DeflateFault)?;
        // A flush is complete only if it left room in the buffer.
        Ok(self.compress.total_in() - before == input.len() as u64 && out.len() < out.capacity())
    }
}

/// Encodes `input` as stored blocks.
fn store(input: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(input.len() + (input.len() / STORED_BYTES + 1) * STORED_OVERHEAD);
    for piece in input.chunks(STORED_BYTES) {
        let length = piece.len() as u16;
        out.push(0);
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&(!length).to_le_bytes());
        out.extend_from_slice(piece);
    }
    out
}

/// Returns whether the bytes are spread so evenly that deflating gains nothing, as in compressed or
/// encrypted data.
fn is_incompressible(input: &[u8]) -> bool {
    if input.len() < MIN_SAMPLED_BYTES {
        return false;
    }
    let mut counts = [0u32; 256];
    let mut seen = 0u32;
    let step = (input.len() / SAMPLES).max(SAMPLE_BYTES);
    for start in (0..input.len()).step_by(step) {
        for byte in &input[start..input.len().min(start + SAMPLE_BYTES)] {
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
    bits > DENSE_BITS
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
    fn compressed_data_is_stored() {
        let noise = noise(200_000);
        assert_eq!(Deflater::new().compress_whole(&noise).unwrap(), None);
        let stored = Deflater::new().compress_block(&noise).unwrap();
        assert_eq!(stored.len(), noise.len() + 4 * STORED_OVERHEAD);
        assert_eq!(Deflater::new().compress_whole(b"xyz").unwrap(), None, "three bytes cannot shrink");
    }

    #[test]
    fn mixed_blocks_form_one_valid_stream() {
        let blocks = [
            vec![0; BLOCK_BYTES],
            noise(BLOCK_BYTES),
            b"a".to_vec(),
            "text and more text ".repeat(9_999).into(),
            noise(5_000),
        ];
        let mut deflater = Deflater::new();
        let mut stream: Vec<u8> =
            blocks.iter().flat_map(|block| deflater.compress_block(block).unwrap()).collect();
        stream.extend(FINAL_BLOCK);
        assert!(inflate(&stream) == blocks.concat());
    }

    /// Bytes of float-like numbers: the high byte has few values, the others are random.
    fn numbers(length: usize) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(5);
        (0..length).map(|i| if i % 4 == 3 { 60 + random.u8(..4) } else { random.u8(..) >> (i % 2) }).collect()
    }

    #[test]
    fn non_repeating_data_packs_as_well_without_search() {
        let numbers = numbers(BLOCK_BYTES);
        let mut deflater = Deflater::new();
        let searched = deflater.compress_whole(&numbers).unwrap().unwrap();
        let mut stream = deflater.compress_block(&numbers).unwrap();
        assert!(
            stream.len() <= searched.len() + searched.len() / MIN_GAIN_DIVISOR,
            "{} {}",
            stream.len(),
            searched.len()
        );
        stream.extend(FINAL_BLOCK);
        assert!(inflate(&stream) == numbers);
    }

    #[test]
    fn zero_block_compresses_to_almost_nothing() {
        let packed = Deflater::new().compress_block(&[0; BLOCK_BYTES]).unwrap();
        assert!(packed.len() < BLOCK_BYTES / 500, "{}", packed.len());
    }

    #[test]
    fn repeats_starting_mid_block_are_found() {
        let text = "text and more text ".repeat(50_000).into_bytes();
        let block = [numbers(BLOCK_BYTES - text.len().min(BLOCK_BYTES / 2)), text].concat();
        let block = &block[..BLOCK_BYTES];
        let mut deflater = Deflater::new();
        let mut stream = deflater.compress_block(block).unwrap();
        assert!(stream.len() < BLOCK_BYTES - BLOCK_BYTES / 8, "{}", stream.len());
        stream.extend(FINAL_BLOCK);
        assert!(inflate(&stream) == block);
    }

    proptest! {
        #[test]
        fn any_input_survives_round_trip(
            input in prop::collection::vec(any::<u8>(), 0..20_000),
            repeat in 1usize..4,
        ) {
            let input = input.repeat(repeat);
            let mut deflater = Deflater::new();
            if let Some(stream) = deflater.compress_whole(&input).unwrap() {
                prop_assert!(stream.len() < input.len());
                prop_assert_eq!(&inflate(&stream), &input);
            }
            let stream = [deflater.compress_block(&input).unwrap(), FINAL_BLOCK.to_vec()].concat();
            prop_assert_eq!(&inflate(&stream), &input);
        }
    }
}
