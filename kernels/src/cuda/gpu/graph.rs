//! Recorded steps: stream capture, instantiated once, launched many times.

use cudarc::driver::sys as cu;

use super::expect;
use crate::cuda::driver::GraphId;

/// Instantiated graphs, by id. Bounded by the caller: one per bucket of rows.
#[derive(Default)]
pub(super) struct Graphs {
    executables: Vec<cu::CUgraphExec>,
}

impl Graphs {
    pub fn begin(stream: cu::CUstream) {
        let mode = cu::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is ours and not recording.
        expect("cuStreamBeginCapture", unsafe { cu::cuStreamBeginCapture_v2(stream, mode) });
    }

    pub fn end(&mut self, stream: cu::CUstream) -> Option<GraphId> {
        let (mut graph, mut executable) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: `graph` is writable and the stream is recording.
        expect("cuStreamEndCapture", unsafe { cu::cuStreamEndCapture(stream, &mut graph) });
        // SAFETY: the graph was just recorded; an executable keeps no reference to it.
        let made = unsafe { cu::cuGraphInstantiateWithFlags(&mut executable, graph, 0) };
        // SAFETY: as above.
        expect("cuGraphDestroy", unsafe { cu::cuGraphDestroy(graph) });
        if made != cu::CUresult::CUDA_SUCCESS {
            return None;
        }
        self.executables.push(executable);
        Some(GraphId(self.executables.len() as u32 - 1))
    }

    pub fn launch(&self, graph: GraphId, stream: cu::CUstream) {
        let executable = self.executables[graph.0 as usize];
        // SAFETY: instantiated in `end` and never destroyed.
        expect("cuGraphLaunch", unsafe { cu::cuGraphLaunch(executable, stream) });
    }
}
