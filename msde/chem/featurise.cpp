// The arrays of a MoleculeRecord from RDKit's binary form of a molecule, in one call.
//
// The layout of that form (MolPickler, format 16.1.0 to 16.4.0, little-endian; written by RDKit
// 2024.03 to 2026.09 with no properties and conformers in double precision):
//
//   u4 0xDEADBEEF, i4 0, i4 major, i4 minor, i4 patch, i4 atoms, i4 bonds, u1 0x80
//   u1 1, then each atom:
//     u1 atomic number; u1 flags: 2 monomer, 4 dummy label, 8 map number, 16 query,
//     32 no implicit hydrogens, 64 aromatic
//     u4 which of these follow, by bits: 2 i1 charge, 4 u1 chiral tag, 8 u1 hybridisation (else
//     SP3), 16 u1 explicit hydrogens, 32 i1 explicit valence, 64 i1 implicit valence (else none or
//     not known), 128 u1 radical electrons, 256 u4 isotope
//     map number: u1 24, i1 number, or i1 -1 and i4 number; dummy label: u1 44, u4 length, text
//   u1 11, then each bond:
//     T begin, T end; u1 flags: 1 ends of a multi-centre bond, 2 stereo, 4 direction, 8 type (else
//     single), 16 query, 32 conjugated, 64 aromatic
//     u1 type; u1 direction; u1 stereo, u1 count, T each stereo atom; two times u4 length, text
//   u1 20, 66, 67 or 68 (how rings were found), u4 rings, then each: T size, T each atom
//   u1 64 (unless conformers were left out), u4 bytes, i4 conformers, then each:
//     u1 is 3D, i4 id, T atoms, f8 x, y, z of each
//   u1 22, the end
//
// where T is u1 for molecules of up to 255 atoms and i4 for larger ones. Whatever is not listed, or
// not as expected, is left to RDKit's getters, which know how to complain: no reason is given here.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int kMaxAtoms = 1024;  // time and memory grow with the square
enum { kNumber, kChirality, kDegree, kCharge, kHydrogens, kRadicals, kHybridization, kAromatic,
       kInRing, kAtomColumns };
enum { kType, kStereo, kConjugated, kBondColumns };
constexpr uint8_t kUnknown = 0, kSp3 = 4, kSingle = 1;  // hybridisations, type of bond

struct Unexpected {};

void expect(bool condition) {
  if (!condition) throw Unexpected();
}

class Reader {
 public:
  Reader(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}

  template <typename T>
  T take() {
    T value;
    std::memcpy(&value, skip(sizeof(T)), sizeof(T));
    return value;
  }
  uint8_t byte() { return take<uint8_t>(); }
  const uint8_t* skip(size_t count) {
    expect(count <= static_cast<size_t>(end_ - at_));
    return (at_ += count) - count;
  }
  void skip_text() { skip(take<uint32_t>()); }
  bool at_end() const { return at_ == end_; }

 private:
  const uint8_t* at_;
  const uint8_t* end_;
};

struct Molecule {
  int num_atoms = 0, num_bonds = 0, num_conformers = 0;
  std::vector<float> pos;
  std::vector<uint16_t> bond_index, extended_source, extended_degree;
  std::vector<uint8_t> z, x, bond_attr;
};

template <typename T>
class Decoder {
 public:
  Decoder(Reader& in, const uint8_t* codes, double closest, Molecule& mol)
      : in_(in), codes_(codes), closest_(closest), mol_(mol), bonded_(mol.num_atoms) {}

  void run() {
    expect(in_.byte() == 1);
    for (int i = 0; i < mol_.num_atoms; ++i) atom(x_of(i), &mol_.z[i]);
    expect(in_.byte() == 11);
    for (int i = 0; i < mol_.num_bonds; ++i) bond(i);
    rings();
    conformers();
    expect(in_.at_end());
    encode();
  }

 private:
  uint8_t* x_of(int atom) { return &mol_.x[atom * kAtomColumns]; }
  int index() {
    const int64_t i = in_.take<T>();
    expect(i >= 0 && i < mol_.num_atoms);
    return static_cast<int>(i);
  }

  // Columns hold what RDKit says until encode() makes codes of it.
  void atom(uint8_t* x, uint8_t* z) {
    *z = x[kNumber] = in_.byte();
    const uint8_t flags = in_.byte();
    expect(*z <= 118 && !(flags & (0x80 | 2 | 16)));
    x[kAromatic] = (flags & 64) != 0;
    const uint32_t follows = in_.take<uint32_t>();
    expect(!(follows & ~0x1FEu));
    x[kCharge] = follows & 2 ? in_.byte() : 0;
    x[kChirality] = follows & 4 ? in_.byte() : 0;
    x[kHybridization] = follows & 8 ? in_.byte() : kSp3;
    int hydrogens = follows & 16 ? in_.byte() : 0;
    const int valence = follows & 32 ? in_.take<int8_t>() : 0;
    const int implicit = follows & 64 ? in_.take<int8_t>() : 0;
    x[kRadicals] = follows & 128 ? in_.byte() : 0;
    if (follows & 256) in_.skip(sizeof(uint32_t));
    if (!(flags & 32)) hydrogens += implicit;
    expect(valence >= 0 && implicit >= 0 && hydrogens <= 255);
    x[kHydrogens] = static_cast<uint8_t>(hydrogens);
    valences_.push_back(valence);
    if (flags & 8) {
      expect(in_.byte() == 24);
      if (in_.take<int8_t>() < 0) in_.skip(sizeof(int32_t));
    }
    if (flags & 4) {
      expect(in_.byte() == 44);
      in_.skip_text();
    }
  }

  void bond(int number) {
    const int begin = index(), end = index();
    ++bonded_[begin], ++bonded_[end];
    const uint8_t flags = in_.byte();
    expect(!(flags & (0x80 | 16)));
    uint8_t* attr = &mol_.bond_attr[number * kBondColumns];
    attr[kConjugated] = (flags & 32) != 0;
    attr[kType] = flags & 8 ? in_.byte() : kSingle;
    if (flags & 4) in_.skip(1);
    attr[kStereo] = flags & 2 ? in_.byte() : 0;
    if (flags & 2) in_.skip(in_.byte() * sizeof(T));
    if (flags & 1) in_.skip_text(), in_.skip_text();
    mol_.bond_index[2 * number] = static_cast<uint16_t>(begin < end ? begin : end);
    mol_.bond_index[2 * number + 1] = static_cast<uint16_t>(begin < end ? end : begin);
  }

  void rings() {
    const uint8_t found_by = in_.byte();
    expect(found_by == 20 || (found_by >= 66 && found_by <= 68));
    for (uint32_t left = in_.take<uint32_t>(); left > 0; --left) {
      for (int64_t size = in_.take<T>(); size > 0; --size) x_of(index())[kInRing] = 1;
    }
  }

  // Positions of conformers that are 3D, or zeros where conformers were left out.
  void conformers() {
    const size_t size = 3 * static_cast<size_t>(mol_.num_atoms);
    const uint8_t tag = in_.byte();
    if (tag == 22) {
      mol_.num_conformers = 1;
      return mol_.pos.assign(size, 0.0f);
    }
    expect(tag == 64);
    in_.skip(sizeof(uint32_t));
    std::vector<double> pos(size);
    for (int32_t left = in_.take<int32_t>(); left > 0; --left) {
      const bool is_3d = in_.byte() != 0;
      in_.skip(sizeof(int32_t));
      expect(static_cast<int64_t>(in_.take<T>()) == mol_.num_atoms);
      std::memcpy(pos.data(), in_.skip(size * sizeof(double)), size * sizeof(double));
      if (!is_3d) continue;
      check_geometry(pos);
      ++mol_.num_conformers;
      centre(pos);
    }
    expect(mol_.num_conformers > 0 && in_.byte() == 22);
  }

  void check_geometry(const std::vector<double>& pos) const {
    for (double value : pos) expect(std::isfinite(value));
    for (size_t i = 0; i < pos.size(); i += 3) {
      for (size_t j = 0; j < i; j += 3) {
        const double a = pos[i] - pos[j], b = pos[i + 1] - pos[j + 1], c = pos[i + 2] - pos[j + 2];
        expect(a * a + b * b + c * c >= closest_);
      }
    }
  }

  // Sums run over the atoms in their order, as numpy's along that axis do.
  void centre(const std::vector<double>& pos) {
    double mean[3] = {0, 0, 0};
    for (size_t i = 0; i < pos.size(); ++i) mean[i % 3] += pos[i];
    for (double& value : mean) value /= mol_.num_atoms;
    for (size_t i = 0; i < pos.size(); ++i) {
      mol_.pos.push_back(static_cast<float>(pos[i] - mean[i % 3]));
    }
  }

  void encode() {
    for (int i = 0; i < mol_.num_atoms; ++i) {
      uint8_t* x = x_of(i);
      // Where nobody sanitised, hydrogens that are not known look like none; so would the rest.
      expect(bonded_[i] ? valences_[i] > 0 : x[kHybridization] != kUnknown || x[kNumber] == 0);
      const int degree = bonded_[i] + x[kHydrogens];
      expect(degree <= 255);
      x[kDegree] = static_cast<uint8_t>(degree);
      for (int c = 0; c < kAtomColumns; ++c) x[c] = codes_[256 * c + x[c]];
    }
    for (int i = 0; i < mol_.num_bonds * kBondColumns; ++i) {
      const int column = kAtomColumns + i % kBondColumns;
      mol_.bond_attr[i] = codes_[256 * column + mol_.bond_attr[i]];
    }
  }

  Reader& in_;
  const uint8_t* codes_;  // (12, 256), the code of each value of each column
  const double closest_;  // square of the least distance between atoms, A^2
  Molecule& mol_;
  std::vector<int> bonded_, valences_;
};

// Pairs of atoms one to four bonds apart: who is within two bonds of whom, and that once more.
void extend(Molecule& mol) {
  const int words = (mol.num_atoms + 63) / 64;  // of a set of atoms as bits
  std::vector<uint64_t> near(mol.num_atoms * words), next;
  const auto mark = [&](int i, int j) { near[i * words + j / 64] |= uint64_t{1} << (j % 64); };
  for (int i = 0; i < mol.num_atoms; ++i) mark(i, i);
  for (size_t b = 0; b < mol.bond_index.size(); b += 2) {
    mark(mol.bond_index[b], mol.bond_index[b + 1]);
    mark(mol.bond_index[b + 1], mol.bond_index[b]);
  }
  const auto for_each = [&](int i, auto&& work) {
    for (int w = 0; w < words; ++w) {
      for (uint64_t bits = near[i * words + w]; bits; bits &= bits - 1) {
        work(64 * w + __builtin_ctzll(bits));
      }
    }
  };
  for (int round = 0; round < 2; ++round) {
    next.assign(near.size(), 0);
    for (int i = 0; i < mol.num_atoms; ++i) {
      for_each(i, [&](int j) {
        for (int w = 0; w < words; ++w) next[i * words + w] |= near[j * words + w];
      });
    }
    near.swap(next);
  }
  for (int i = 0; i < mol.num_atoms; ++i) {
    const size_t before = mol.extended_source.size();
    for_each(i, [&](int j) {
      if (j != i) mol.extended_source.push_back(static_cast<uint16_t>(j));
    });
    mol.extended_degree.push_back(static_cast<uint16_t>(mol.extended_source.size() - before));
  }
}

Molecule decode(Reader in, const uint8_t* codes, double closest) {
  expect(in.take<uint32_t>() == 0xDEADBEEF && in.take<int32_t>() == 0);
  const int32_t major = in.take<int32_t>(), minor = in.take<int32_t>(), patch = in.take<int32_t>();
  expect(major == 16 && minor >= 1 && minor <= 4 && patch == 0);
  Molecule mol;
  mol.num_atoms = in.take<int32_t>();
  mol.num_bonds = in.take<int32_t>();
  expect(mol.num_atoms > 0 && mol.num_atoms <= kMaxAtoms);
  expect(mol.num_bonds >= 0 && mol.num_bonds <= mol.num_atoms * kMaxAtoms && in.byte() == 0x80);
  mol.z.resize(mol.num_atoms);
  mol.x.resize(mol.num_atoms * kAtomColumns);
  mol.bond_index.resize(2 * mol.num_bonds);
  mol.bond_attr.resize(mol.num_bonds * kBondColumns);
  if (mol.num_atoms > 255) {
    Decoder<int32_t>(in, codes, closest, mol).run();
  } else {
    Decoder<uint8_t>(in, codes, closest, mol).run();
  }
  extend(mol);
  return mol;
}

}  // namespace

// Writes the numbers of atoms, bonds, extended edges and conformers, i4 each, then the arrays in
// the order below. Returns how many bytes that took, or zero for a molecule to leave to RDKit.
extern "C" size_t msde_featurise(const uint8_t* binary, size_t size, const uint8_t* codes,
                                 double closest, uint8_t* out, size_t capacity) try {
  const Molecule mol = decode(Reader(binary, size), codes, closest);
  const int32_t edges = static_cast<int32_t>(mol.extended_source.size());
  const std::vector<int32_t> counts = {mol.num_atoms, mol.num_bonds, edges, mol.num_conformers};
  size_t used = 0;
  const auto append = [&](const auto& values) {
    const size_t bytes = values.size() * sizeof(values[0]);
    expect(bytes <= capacity - used);
    if (bytes) std::memcpy(out + used, values.data(), bytes);
    used += bytes;
  };
  append(counts), append(mol.pos), append(mol.bond_index), append(mol.extended_source);
  append(mol.extended_degree), append(mol.z), append(mol.x), append(mol.bond_attr);
  return used;
} catch (...) {
  return 0;
}
