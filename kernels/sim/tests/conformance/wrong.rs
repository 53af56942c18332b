//! Buffers for the kernels of wrong/wrong.cu, which all take the same parameters.

use cusim::{Fault, Options, Stats, Swizzle, TensorMapSpec, launch};

use crate::support::Guarded;

/// 4096 words in, 4096 words out; the map is 16 lines of 64 16-bit elements at `in`, boxes of 8 lines.
pub struct Wrong {
    input: Guarded<u32>,
    output: Guarded<u32>,
}

impl Wrong {
    pub fn new() -> Self {
        let input: Vec<u32> = (0..4096u32).map(|i| i * 3 + 1).collect();
        Self { input: Guarded::from(&input), output: Guarded::new(4096) }
    }

    pub fn params(&mut self) -> Vec<u8> {
        let map = TensorMapSpec {
            base: self.input.address(),
            element_bytes: 2,
            dims: vec![64, 16],
            strides: vec![128],
            tile: vec![64, 8],
            swizzle: Swizzle::Bytes128,
        };
        let map = map.encode().expect("a map");
        let words = map.into_iter().chain([self.input.address(), self.output.address()]).chain([0; 6]);
        words.flat_map(u64::to_le_bytes).collect()
    }

    /// One block with as much shared memory as the kernel needs to be wrong in its own way only.
    pub fn launch(&mut self, kernel: &str, threads: u32, options: &Options) -> Result<Stats, Fault> {
        let params = self.params();
        let shared = match kernel {
            "writes_beyond" => 128,
            "copy_beyond" => 256,
            "tma_beyond" => 1024,
            _ => 16_384,
        };
        launch(&format!("wrong_{kernel}"), [1, 1, 1], [threads, 1, 1], shared, &params, options)
    }

    /// The output of a launch without fault.
    pub fn run(&mut self, kernel: &str, threads: u32, seed: u64) -> Vec<u32> {
        if let Err(fault) = self.launch(kernel, threads, &Options::seeded(seed)) {
            panic!("{fault}");
        }
        self.output.assert_guards(kernel);
        self.output.as_slice().to_vec()
    }

    pub fn input(&self) -> &[u32] {
        self.input.as_slice()
    }

    pub fn out(&self) -> &[u32] {
        self.output.as_slice()
    }
}
