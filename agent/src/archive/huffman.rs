//! Deflate with Huffman codes only, without a search for repeats. For data that hardly repeats
//! itself (numbers, measurements, weights) the output is nearly as small as with a search, in a
//! fraction of the time.

/// Number of symbols, which are the 256 bytes and the end-of-block mark.
const SYMBOLS: usize = 257;
const END_OF_BLOCK: usize = 256;
/// Longest code that deflate permits, in bits.
const MAX_CODE_BITS: u8 = 15;
/// Bits of each code length in the block header.
const LENGTH_BITS: u32 = 4;

/// Frequency of each symbol.
#[derive(Debug, Clone)]
pub(super) struct ByteCounts([u32; SYMBOLS]);

/// Code of each symbol: its bits in output order, and their count.
struct HuffmanCodes([(u16, u8); SYMBOLS]);

/// Packs codes into bytes, lowest bit first.
struct BitWriter {
    out: Vec<u8>,
    held: u64,
    count: u32,
}

impl ByteCounts {
    pub(super) fn of(input: &[u8]) -> Self {
        let mut counts = [0; SYMBOLS];
        for byte in input {
            counts[usize::from(*byte)] += 1;
        }
        counts[END_OF_BLOCK] = 1;
        Self(counts)
    }

    /// Estimates the bytes that [`encode`] needs, as the entropy of single bytes with at least one
    /// bit for each.
    pub(super) fn cost(&self) -> usize {
        let all: f64 = self.0.iter().map(|n| f64::from(*n)).sum();
        let code = |n: f64| (all / n).log2().max(1.0);
        let bits = self.0.iter().filter(|n| **n > 0).map(|n| f64::from(*n) * code(f64::from(*n)));
        (bits.sum::<f64>() / 8.0) as usize
    }
}

/// Encodes `input` as deflate blocks that end at a byte boundary.
pub(super) fn encode(input: &[u8]) -> Vec<u8> {
    let counts = ByteCounts::of(input);
    let lengths = code_lengths(&counts.0);
    let codes = HuffmanCodes::of(&lengths);
    let mut bits = BitWriter { out: Vec::with_capacity(counts.cost() + 1_024), held: 0, count: 0 };
    write_header(&mut bits, &lengths);
    for byte in input {
        bits.code(codes.0[usize::from(*byte)]);
    }
    bits.code(codes.0[END_OF_BLOCK]);
    // An empty stored block aligns the output to a byte boundary.
    bits.put(0, 3);
    bits.align();
    bits.out.extend_from_slice(&[0, 0, 0xff, 0xff]);
    bits.out
}

/// Writes the header of a block that is not the last, and its code lengths. Distances are never
/// used; two are declared because some decoders require them.
fn write_header(bits: &mut BitWriter, lengths: &[u8; SYMBOLS]) {
    bits.put(0b100, 3);
    let distances = [1, 1];
    bits.put((SYMBOLS - 257) as u64, 5);
    bits.put((distances.len() - 1) as u64, 5);
    // All 19 lengths of the code-length code. The three for repeats come first and are unused.
    bits.put(19 - 4, 4);
    (0..19).for_each(|i| bits.put(if i < 3 { 0 } else { u64::from(LENGTH_BITS) }, 3));
    for length in lengths.iter().chain(&distances) {
        bits.code((reversed(u16::from(*length), LENGTH_BITS as u8), LENGTH_BITS as u8));
    }
}

/// Computes the code length of each symbol. If a Huffman code is too long, the counts are evened
/// out and the computation is repeated.
fn code_lengths(counts: &[u32; SYMBOLS]) -> [u8; SYMBOLS] {
    let mut counts = *counts;
    // Deflate requires at least two symbols.
    counts[0] = counts[0].max(1);
    loop {
        if let Some(lengths) = huffman_lengths(&counts) {
            return lengths;
        }
        counts.iter_mut().filter(|n| **n > 0).for_each(|n| *n = *n / 2 + 1);
    }
}

/// Computes Huffman code lengths with the two-queue method. Returns `None` if a code is too long.
fn huffman_lengths(counts: &[u32; SYMBOLS]) -> Option<[u8; SYMBOLS]> {
    let mut leaves: Vec<(u64, usize)> = counts
        .iter()
        .enumerate()
        .filter(|(_, n)| **n > 0)
        .map(|(symbol, n)| (u64::from(*n), symbol))
        .collect();
    leaves.sort_unstable();
    // Nodes in the order of their creation, which is the order of weight: leaves, then pairs.
    let mut weights: Vec<u64> = leaves.iter().map(|(weight, _)| *weight).collect();
    let mut parents = vec![0; 2 * leaves.len() - 1];
    let (mut leaf, mut pair) = (0, leaves.len());
    for made in leaves.len()..parents.len() {
        let mut lightest = || {
            let takes_leaf = leaf < leaves.len() && (pair >= made || weights[leaf] <= weights[pair]);
            let taken = if takes_leaf { &mut leaf } else { &mut pair };
            *taken += 1;
            *taken - 1
        };
        let both = [lightest(), lightest()];
        weights.push(both.iter().map(|child| weights[*child]).sum());
        both.iter().for_each(|child| parents[*child] = made);
    }
    let mut depths = vec![0u8; parents.len()];
    for node in (0..parents.len() - 1).rev() {
        depths[node] = depths[parents[node]].saturating_add(1);
    }
    let mut lengths = [0; SYMBOLS];
    for ((_, symbol), depth) in leaves.iter().zip(depths) {
        lengths[*symbol] = depth;
    }
    lengths.iter().all(|length| *length <= MAX_CODE_BITS).then_some(lengths)
}

impl HuffmanCodes {
    /// Numbers the codes as RFC 1951, section 3.2.2 defines.
    fn of(lengths: &[u8; SYMBOLS]) -> Self {
        let mut codes = [(0, 0); SYMBOLS];
        let mut next = 0u16;
        for length in 1..=MAX_CODE_BITS {
            next <<= 1;
            for (symbol, _) in lengths.iter().enumerate().filter(|(_, of)| **of == length) {
                codes[symbol] = (reversed(next, length), length);
                next += 1;
            }
        }
        Self(codes)
    }
}

/// Reverses the bits of a code. Deflate writes codes with the highest bit first, and other values
/// with the lowest bit first.
fn reversed(code: u16, length: u8) -> u16 {
    code.reverse_bits() >> (16 - length)
}

impl BitWriter {
    fn code(&mut self, (code, length): (u16, u8)) {
        self.put(u64::from(code), u32::from(length));
    }

    /// Appends at most 16 bits.
    fn put(&mut self, bits: u64, count: u32) {
        self.held |= bits << self.count;
        self.count += count;
        if self.count >= 48 {
            self.out.extend_from_slice(&self.held.to_le_bytes()[..6]);
            self.held >>= 48;
            self.count -= 48;
        }
    }

    fn align(&mut self) {
        let bytes = self.count.div_ceil(8) as usize;
        self.out.extend_from_slice(&self.held.to_le_bytes()[..bytes]);
        (self.held, self.count) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::archive::deflate::{FINAL_BLOCK, tests::inflate};

    fn packed(input: &[u8]) -> Vec<u8> {
        let mut out = encode(input);
        out.extend(FINAL_BLOCK);
        out
    }

    #[test]
    fn trivial_inputs_survive_round_trip() {
        for input in [&b""[..], b"x", &[0; 100_000], b"abab"] {
            assert_eq!(inflate(&packed(input)), input);
        }
    }

    #[test]
    fn fibonacci_frequencies_get_limited_code_lengths() {
        // Fibonacci frequencies, the worst case of Huffman's algorithm.
        let (mut now, mut then) = (1, 1);
        let mut input = Vec::new();
        for byte in 0..24 {
            input.extend(std::iter::repeat_n(byte, now));
            (then, now) = (now, now + then);
        }
        let counts = ByteCounts::of(&input).0;
        assert_eq!(huffman_lengths(&counts), None, "unlimited codes are too long");
        let lengths = code_lengths(&counts);
        assert!(lengths.iter().all(|length| *length <= MAX_CODE_BITS), "{lengths:?}");
        assert_eq!(inflate(&packed(&input)), input);
    }

    #[test]
    fn encoded_size_matches_estimate() {
        let mut random = fastrand::Rng::with_seed(3);
        for length in [100_000, 393_216, 1_000_000] {
            let input: Vec<u8> = (0..length).map(|_| random.u8(..64)).collect();
            let (out, estimate) = (packed(&input).len(), ByteCounts::of(&input).cost());
            assert!(
                estimate.abs_diff(length / 4 * 3) < 50 && out.abs_diff(estimate) < 200 + length / 200,
                "{out} {estimate}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_input_survives_round_trip(
            input in prop::collection::vec(any::<u8>(), 0..5_000),
            below in 1u8..=255,
        ) {
            let input: Vec<u8> = input.iter().map(|byte| byte % below).collect();
            prop_assert_eq!(inflate(&packed(&input)), input);
        }
    }
}
