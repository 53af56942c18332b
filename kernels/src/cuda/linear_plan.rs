//! Which kernel multiplies a batch by a weight, and how it is launched.
//!
//! A pure function: (family, rows, n, k, multiprocessors) to a launch. Every kernel of a family computes the same
//! bits for a row (one chain of tensor-core instructions along k, see `kernels/cu/linear.cuh`), so the choice is
//! only about time and may change between batch sizes. The family is chosen once for a weight and kept:
//! whether mma.sync and wgmma round alike is unknown.
//!
//! Each shape's time is estimated in cycles as the largest of four: weights from memory, tiles out of L2, the
//! busiest multiprocessor's share of both its port and its tensor cores, and the chain's latency. The constants
//! are an H200's (4.3 TB/s, 132 multiprocessors at 1.755 GHz); other cards have similar ratios, and only the
//! order of the estimates counts. Not a table of measurements, since those would need each card at hand.

/// The instruction that a weight is multiplied with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum LinearFamily {
    /// mma.sync, every architecture.
    Mma,
    /// wgmma and TMA, sm_90a.
    Wgmma,
    /// mma.sync on weights of 8 bits.
    Fp8,
}

/// Rows of the tensor maps' boxes; both are 64 elements of k wide.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct LinearBoxes {
    pub x_rows: u32,
    pub w_rows: u32,
}

/// One launch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinearPlan {
    pub kernel: &'static str,
    pub grid: [u32; 3],
    pub block: u32,
    /// Dynamic shared memory in bytes.
    pub smem: u32,
    /// Of `LinearSm90Params`; `None`: the kernel takes `LinearParams`.
    pub boxes: Option<LinearBoxes>,
}

/// How a kernel's blocks cover the output.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Walk {
    /// Channels in x, rows in y.
    Panels,
    /// All tiles in x.
    Tiles,
    /// At most one block a multiprocessor, each takes tile after tile.
    Persistent,
}

/// A kernel as the sources define it.
struct Shape {
    kernel: &'static str,
    family: LinearFamily,
    /// Rows and channels of a block.
    bm: u32,
    bn: u32,
    stages: u32,
    threads: u32,
    walk: Walk,
    /// Rows of a box of x; 0: no tensor maps.
    x_box: u32,
}

const fn mma(kernel: &'static str, bm: u32, bn: u32, stages: u32, threads: u32, walk: Walk) -> Shape {
    Shape { kernel, family: LinearFamily::Mma, bm, bn, stages, threads, walk, x_box: 0 }
}

const fn fp8(kernel: &'static str, bm: u32, bn: u32, stages: u32, threads: u32) -> Shape {
    Shape { kernel, family: LinearFamily::Fp8, bm, bn, stages, threads, walk: Walk::Tiles, x_box: 0 }
}

/// One consumer group of 64 rows for decode, two for prefill; the producer's group comes on top.
const fn wgmma(kernel: &'static str, bm: u32, bn: u32, stages: u32, walk: Walk) -> Shape {
    let (threads, x_box) = if bm == 64 { (256, 8) } else { (384, 64) };
    Shape { kernel, family: LinearFamily::Wgmma, bm, bn, stages, threads, walk, x_box }
}

/// Narrow before wide: of equal estimates the first is taken.
const SHAPES: [Shape; 22] = [
    mma("quire_linear_row16_n32", 16, 32, 16, 128, Walk::Panels),
    mma("quire_linear_row16_n64", 16, 64, 9, 128, Walk::Panels),
    mma("quire_linear_row16_n128", 16, 128, 5, 256, Walk::Panels),
    mma("quire_linear_row32_n32", 32, 32, 12, 128, Walk::Panels),
    mma("quire_linear_row32_n64", 32, 64, 8, 128, Walk::Panels),
    mma("quire_linear_row32_n128", 32, 128, 4, 256, Walk::Panels),
    mma("quire_linear_row64_n32", 64, 32, 8, 128, Walk::Panels),
    mma("quire_linear_row64_n64", 64, 64, 6, 128, Walk::Panels),
    mma("quire_linear_row64_n128", 64, 128, 4, 256, Walk::Panels),
    mma("quire_linear_tile64", 64, 64, 5, 128, Walk::Tiles),
    mma("quire_linear_tile128", 128, 128, 3, 128, Walk::Tiles),
    wgmma("quire_linear_sm90_row32", 64, 32, 16, Walk::Persistent),
    wgmma("quire_linear_sm90_row64", 64, 64, 6, Walk::Tiles),
    wgmma("quire_linear_sm90_row128", 64, 128, 4, Walk::Tiles),
    wgmma("quire_linear_sm90_tile128", 128, 128, 6, Walk::Persistent),
    wgmma("quire_linear_sm90_tile256", 128, 256, 4, Walk::Persistent),
    fp8("quire_linear_fp8_row16_n32", 16, 32, 20, 64),
    fp8("quire_linear_fp8_row16_n64", 16, 64, 16, 128),
    fp8("quire_linear_fp8_row16_n128", 16, 128, 9, 128),
    fp8("quire_linear_fp8_row64_n64", 64, 64, 8, 128),
    fp8("quire_linear_fp8_row64_n128", 64, 128, 6, 128),
    fp8("quire_linear_fp8_tile128", 128, 128, 4, 128),
];

/// Bytes a cycle and multiprocessor: from memory, from L2 with all at it, and through one port at best.
const MEMORY_RATE: f64 = 18.6;
const L2_RATE: f64 = 24.0;
const PORT_RATE: f64 = 32.0;
/// Multiply-adds a cycle and multiprocessor.
const MMA_RATE: f64 = 1280.0;
const WGMMA_RATE: f64 = 2048.0;
/// Cycles from one link of a chain to the next.
const LINK: f64 = 33.0;
/// Cycles to fill the ring and to store, once for every round of blocks.
const ROUND: f64 = 1500.0;
/// Most rows for which the decode shapes are weighed: their grids have the rows in y.
const PANEL_ROWS_MAX: u32 = 256;

/// The launch for a batch of up to `rows` rows (a graph's bucket; live rows may be fewer).
pub fn plan(family: LinearFamily, rows: u32, n: u32, k: u32, sms: u32) -> LinearPlan {
    assert!(rows > 0 && n > 0 && k > 0 && k.is_multiple_of(8), "linear of {rows} rows, {n} x {k}");
    let mut best: Option<(f64, &Shape)> = None;
    for shape in SHAPES.iter().filter(|s| s.family == family && s.serves(rows)) {
        let cycles = shape.cycles(rows, n, k, sms.max(1));
        if best.is_none_or(|(least, _)| cycles < least) {
            best = Some((cycles, shape));
        }
    }
    let (_, shape) = best.expect("each family has a shape for any number of rows");
    shape.launch(rows, n, sms.max(1))
}

/// Every kernel of a family launched for this product, the chosen one among them: for tests and benches.
pub fn all_plans(family: LinearFamily, rows: u32, n: u32, sms: u32) -> Vec<LinearPlan> {
    SHAPES.iter().filter(|s| s.family == family).map(|s| s.launch(rows, n, sms)).collect()
}

impl Shape {
    fn serves(&self, rows: u32) -> bool {
        self.walk != Walk::Panels || rows <= PANEL_ROWS_MAX
    }

    fn launch(&self, rows: u32, n: u32, sms: u32) -> LinearPlan {
        let (tiles_m, tiles_n) = (rows.div_ceil(self.bm), n.div_ceil(self.bn));
        let grid = match self.walk {
            Walk::Panels => [tiles_n, tiles_m, 1],
            Walk::Tiles => [tiles_m * tiles_n, 1, 1],
            Walk::Persistent => [(tiles_m * tiles_n).min(sms), 1, 1],
        };
        let boxes = (self.x_box != 0).then_some(LinearBoxes { x_rows: self.x_box, w_rows: self.bn });
        LinearPlan { kernel: self.kernel, grid, block: self.threads, smem: self.smem(), boxes }
    }

    /// The ring, and behind it (wgmma) a corner for each consumer warp: 16 rows of up to 64 channels, and padding.
    fn smem(&self) -> u32 {
        let ring = self.stages * (self.bm * 2 + self.bn * self.weight_bytes()) * 64;
        match self.family {
            LinearFamily::Mma | LinearFamily::Fp8 => ring,
            LinearFamily::Wgmma => ring + self.bm * (self.bn.min(64) * 2 + 16),
        }
    }

    fn weight_bytes(&self) -> u32 {
        if self.family == LinearFamily::Fp8 { 1 } else { 2 }
    }

    fn cycles(&self, rows: u32, n: u32, k: u32, sms: u32) -> f64 {
        let (tiles_m, tiles_n) = (rows.div_ceil(self.bm), n.div_ceil(self.bn));
        let (tiles, sms) = (f64::from(tiles_m) * f64::from(tiles_n), f64::from(sms));
        let (rows, n, k) = (f64::from(rows), f64::from(n), f64::from(k));
        let a_sm = if self.walk == Walk::Persistent { 1.0 } else { 2.0 }; // resident blocks
        let rounds = (tiles / (sms * a_sm)).ceil();
        let busiest = (tiles / sms).ceil();
        let weight = f64::from(self.weight_bytes());
        // bytes a k that a block really copies, on average over the row tiles
        let copied = rows / f64::from(tiles_m) * 2.0 + f64::from(self.bn) * weight;
        let (rate, link) = match self.family {
            LinearFamily::Mma | LinearFamily::Fp8 => (MMA_RATE, LINK),
            LinearFamily::Wgmma => (WGMMA_RATE, LINK.max(f64::from(self.bn) / 2.0)),
        };
        let memory = (rows * 2.0 + n * weight) * k / (MEMORY_RATE * sms);
        let l2 = tiles * copied * k / (L2_RATE * sms);
        let port = busiest * copied * k / PORT_RATE;
        let tensor = busiest * f64::from(self.bm * self.bn) * k / rate;
        let chain = rounds * (k / 16.0) * link;
        memory.max(l2).max(port).max(tensor).max(chain) + rounds * ROUND
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    const LLAMA: [(&str, u32, u32); 5] = [
        ("qkv", 6144, 4096),
        ("o", 4096, 4096),
        ("gate_up", 28672, 4096),
        ("down", 4096, 14336),
        ("head", 128256, 4096),
    ];

    fn table(family: LinearFamily) -> String {
        let mut out = String::new();
        for rows in [1, 16, 64, 256, 2048] {
            for (name, n, k) in LLAMA {
                let p = plan(family, rows, n, k, 132);
                out += &format!("{rows:<5} {name:8} {} {:?} x {}\n", p.kernel, p.grid, p.block);
            }
        }
        out
    }

    #[test]
    fn llama_8b_on_132_multiprocessors_by_mma() {
        expect![[r#"
            1     qkv      quire_linear_row16_n32 [192, 1, 1] x 128
            1     o        quire_linear_row16_n32 [128, 1, 1] x 128
            1     gate_up  quire_linear_row16_n128 [224, 1, 1] x 256
            1     down     quire_linear_row16_n32 [128, 1, 1] x 128
            1     head     quire_linear_row16_n128 [1002, 1, 1] x 256
            16    qkv      quire_linear_row16_n64 [96, 1, 1] x 128
            16    o        quire_linear_row16_n32 [128, 1, 1] x 128
            16    gate_up  quire_linear_row16_n128 [224, 1, 1] x 256
            16    down     quire_linear_row16_n32 [128, 1, 1] x 128
            16    head     quire_linear_row16_n128 [1002, 1, 1] x 256
            64    qkv      quire_linear_row64_n64 [96, 1, 1] x 128
            64    o        quire_linear_row32_n64 [64, 2, 1] x 128
            64    gate_up  quire_linear_row64_n128 [224, 1, 1] x 256
            64    down     quire_linear_row32_n64 [64, 2, 1] x 128
            64    head     quire_linear_row64_n128 [1002, 1, 1] x 256
            256   qkv      quire_linear_tile128 [96, 1, 1] x 128
            256   o        quire_linear_row64_n128 [32, 4, 1] x 256
            256   gate_up  quire_linear_tile128 [448, 1, 1] x 128
            256   down     quire_linear_row64_n128 [32, 4, 1] x 256
            256   head     quire_linear_tile128 [2004, 1, 1] x 128
            2048  qkv      quire_linear_tile128 [768, 1, 1] x 128
            2048  o        quire_linear_tile128 [512, 1, 1] x 128
            2048  gate_up  quire_linear_tile128 [3584, 1, 1] x 128
            2048  down     quire_linear_tile128 [512, 1, 1] x 128
            2048  head     quire_linear_tile128 [16032, 1, 1] x 128
        "#]]
        .assert_eq(&table(LinearFamily::Mma));
    }

    #[test]
    fn llama_8b_on_132_multiprocessors_by_wgmma() {
        expect![[r#"
            1     qkv      quire_linear_sm90_row64 [96, 1, 1] x 256
            1     o        quire_linear_sm90_row32 [128, 1, 1] x 256
            1     gate_up  quire_linear_sm90_row128 [224, 1, 1] x 256
            1     down     quire_linear_sm90_row32 [128, 1, 1] x 256
            1     head     quire_linear_sm90_row128 [1002, 1, 1] x 256
            16    qkv      quire_linear_sm90_row64 [96, 1, 1] x 256
            16    o        quire_linear_sm90_row32 [128, 1, 1] x 256
            16    gate_up  quire_linear_sm90_row128 [224, 1, 1] x 256
            16    down     quire_linear_sm90_row32 [128, 1, 1] x 256
            16    head     quire_linear_sm90_row128 [1002, 1, 1] x 256
            64    qkv      quire_linear_sm90_row64 [96, 1, 1] x 256
            64    o        quire_linear_sm90_row32 [128, 1, 1] x 256
            64    gate_up  quire_linear_sm90_tile256 [112, 1, 1] x 384
            64    down     quire_linear_sm90_row32 [128, 1, 1] x 256
            64    head     quire_linear_sm90_tile256 [132, 1, 1] x 384
            256   qkv      quire_linear_sm90_tile128 [96, 1, 1] x 384
            256   o        quire_linear_sm90_row128 [128, 1, 1] x 256
            256   gate_up  quire_linear_sm90_tile256 [132, 1, 1] x 384
            256   down     quire_linear_sm90_row128 [128, 1, 1] x 256
            256   head     quire_linear_sm90_tile256 [132, 1, 1] x 384
            2048  qkv      quire_linear_sm90_tile256 [132, 1, 1] x 384
            2048  o        quire_linear_sm90_tile256 [132, 1, 1] x 384
            2048  gate_up  quire_linear_sm90_tile256 [132, 1, 1] x 384
            2048  down     quire_linear_sm90_tile256 [132, 1, 1] x 384
            2048  head     quire_linear_sm90_tile256 [132, 1, 1] x 384
        "#]]
        .assert_eq(&table(LinearFamily::Wgmma));
    }

    #[test]
    fn llama_8b_on_132_multiprocessors_by_fp8() {
        expect![[r#"
            1     qkv      quire_linear_fp8_row16_n32 [192, 1, 1] x 64
            1     o        quire_linear_fp8_row16_n32 [128, 1, 1] x 64
            1     gate_up  quire_linear_fp8_row16_n128 [224, 1, 1] x 128
            1     down     quire_linear_fp8_row16_n32 [128, 1, 1] x 64
            1     head     quire_linear_fp8_row16_n128 [1002, 1, 1] x 128
            16    qkv      quire_linear_fp8_row16_n64 [96, 1, 1] x 128
            16    o        quire_linear_fp8_row16_n32 [128, 1, 1] x 64
            16    gate_up  quire_linear_fp8_row16_n128 [224, 1, 1] x 128
            16    down     quire_linear_fp8_row16_n32 [128, 1, 1] x 64
            16    head     quire_linear_fp8_row16_n128 [1002, 1, 1] x 128
            64    qkv      quire_linear_fp8_row64_n64 [96, 1, 1] x 128
            64    o        quire_linear_fp8_row64_n64 [64, 1, 1] x 128
            64    gate_up  quire_linear_fp8_row64_n128 [224, 1, 1] x 128
            64    down     quire_linear_fp8_row64_n64 [64, 1, 1] x 128
            64    head     quire_linear_fp8_row64_n128 [1002, 1, 1] x 128
            256   qkv      quire_linear_fp8_tile128 [96, 1, 1] x 128
            256   o        quire_linear_fp8_row64_n128 [128, 1, 1] x 128
            256   gate_up  quire_linear_fp8_tile128 [448, 1, 1] x 128
            256   down     quire_linear_fp8_row64_n128 [128, 1, 1] x 128
            256   head     quire_linear_fp8_tile128 [2004, 1, 1] x 128
            2048  qkv      quire_linear_fp8_tile128 [768, 1, 1] x 128
            2048  o        quire_linear_fp8_tile128 [512, 1, 1] x 128
            2048  gate_up  quire_linear_fp8_tile128 [3584, 1, 1] x 128
            2048  down     quire_linear_fp8_tile128 [512, 1, 1] x 128
            2048  head     quire_linear_fp8_tile128 [16032, 1, 1] x 128
        "#]]
        .assert_eq(&table(LinearFamily::Fp8));
    }

    #[test]
    fn a_grid_covers_every_output_and_fits_the_hardware() {
        for family in [LinearFamily::Mma, LinearFamily::Wgmma, LinearFamily::Fp8] {
            for (rows, n, k) in
                [(1, 1, 8), (3, 33, 24), (17, 129, 4096), (300, 1000, 512), (1 << 20, 152_064, 8192)]
            {
                for sms in [1, 20, 108, 132] {
                    let p = plan(family, rows, n, k, sms);
                    let shape = SHAPES.iter().find(|s| s.kernel == p.kernel).expect("a known kernel");
                    let tiles = u64::from(rows.div_ceil(shape.bm)) * u64::from(n.div_ceil(shape.bn));
                    let blocks = p.grid.iter().map(|g| u64::from(*g)).product::<u64>();
                    assert!(
                        blocks == tiles || shape.walk == Walk::Persistent && blocks <= u64::from(sms),
                        "{p:?}"
                    );
                    assert!(p.grid[1] <= 65_535 && p.grid[2] <= 65_535, "{p:?}");
                    let limit = if family == LinearFamily::Wgmma { 226 << 10 } else { 99 << 10 };
                    assert!(p.smem <= limit, "{p:?}");
                }
            }
        }
    }
}
