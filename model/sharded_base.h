// The frozen matrices of the layers, split over the ranks of a run: every rank keeps its share of each layer,
// and two buffers hold a whole layer each, gathered from all ranks ahead of its use.
#pragma once

#include <optional>
#include <vector>

#include "comm/communicator.h"
#include "kernels/arena.h"

namespace sinklora {

// Layer i lives in buffer i mod 2 whenever it is there, so that views of its matrices are set once. A pass
// goes through the layers in order, upwards or downwards, and calls need(i), prefetch(the next), and then
// computes with layer i: the gather of the next overwrites the layer before the last, whose work was given to
// the device earlier. All ranks make the same calls (comm/communicator.h).
class ShardedBase {
 public:
  // With one rank it holds nothing, and all calls but take() do nothing.
  ShardedBase(int ranks, int64_t layers, DType dtype);
  bool active() const { return ranks_ > 1; }

  // As Arena::take(), layer after layer; all layers ask for the same shapes. Then lay_out().
  void take(int64_t layer, Tensor* view, std::initializer_list<int64_t> shape);
  void lay_out();
  Arena shares{"frozen weights, a share"}, buffers{"frozen weights, two layers"};
  void allocate(Ops& ops);
  // Before the first pass. `ranks` outlives it.
  void connect(Communicator& ranks);

  // Loading: the layer was written through its views; this rank's share of it is taken from there. Two
  // layers that follow one another can be written at once.
  void keep(Ops& ops, int64_t layer);

  // Starts to gather a layer unless it is there or under way; a layer that does not exist is left out.
  void prefetch(int64_t layer);
  // Work that the device is given from here on sees the layer.
  void need(int64_t layer);

 private:
  struct Request {
    int64_t layer;
    Tensor* view;
    Tensor shape;
    int64_t offset;  // elements, in the layer
  };
  struct Slot {
    Tensor memory;                 // [ranks * share]
    int64_t layer = -1;            // what it holds, or will
    std::optional<Ticket> gather;  // under way
  };
  Slot& slot(int64_t layer) { return slots_[static_cast<size_t>(layer % 2)]; }

  int ranks_;
  DType dtype_;
  std::vector<Request> requests_;
  std::vector<int64_t> sizes_;  // elements of each layer
  std::vector<Tensor> shares_;  // of each layer, [share]
  int64_t share_ = 0;           // elements
  Slot slots_[2];
  Communicator* communicator_ = nullptr;
};

}  // namespace sinklora
