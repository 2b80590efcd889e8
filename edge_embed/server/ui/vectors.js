// Arithmetic on vectors. Nothing here touches the page.

/** Cosine of the first `size` values of two vectors; 0 where one of them is all zeros. */
export function cosine(one, other, size = one.length) {
  let product = 0;
  let squares = 0;
  let otherSquares = 0;
  for (let i = 0; i < size; i++) {
    product += one[i] * other[i];
    squares += one[i] * one[i];
    otherSquares += other[i] * other[i];
  }
  const lengths = Math.sqrt(squares * otherSquares);
  return lengths > 0 ? product / lengths : 0;
}

/**
 * Cosines of all pairs. To cut a vector is to keep its first values and make it unit length again, and a cosine
 * divides by the lengths of what was kept: so this is exactly what the server gives with `dimensions: size`.
 */
export function cosines(vectors, size) {
  return vectors.map((one) => vectors.map((other) => (one === other ? 1 : cosine(one, other, size))));
}

/** Mean of how far the cosines of different texts are apart in two tables; 0 for fewer than two texts. */
export function meanChange(table, other) {
  let sum = 0;
  let pairs = 0;
  for (let i = 0; i < table.length; i++) {
    for (let j = 0; j < i; j++) {
      sum += Math.abs(table[i][j] - other[i][j]);
      pairs++;
    }
  }
  return pairs ? sum / pairs : 0;
}

/** For each row, the column of the most similar other text; -1 where there is none. */
export function nearest(table) {
  return table.map((row, i) => row.reduce((best, value, j) => (j !== i && (best < 0 || value > row[best]) ? j : best), -1));
}

/**
 * The sizes that the slider stops at: 8 to the octave, since what a cut costs goes by factors rather than by
 * differences, and all of `marks`.
 */
export function stops(full, marks) {
  const sizes = new Set([...marks, full]);
  const first = Math.min(8, full);
  for (let step = 0; ; step++) {
    const size = Math.round(first * 2 ** (step / 8));
    if (size >= full) break;
    sizes.add(size);
  }
  return [...sizes].filter((size) => size >= first && size <= full).sort((one, other) => one - other);
}

/** Mean change of the cosines at each of the sizes (ascending), in one walk over each pair. */
export function costs(vectors, sizes) {
  const full = vectors[0].length;
  const sums = sizes.map(() => 0);
  let pairs = 0;
  for (let a = 0; a < vectors.length; a++) {
    for (let b = 0; b < a; b++) {
      const exact = cosine(vectors[a], vectors[b], full);
      let product = 0;
      let squares = 0;
      let otherSquares = 0;
      let i = 0;
      sizes.forEach((size, at) => {
        for (; i < size; i++) {
          product += vectors[a][i] * vectors[b][i];
          squares += vectors[a][i] ** 2;
          otherSquares += vectors[b][i] ** 2;
        }
        const lengths = Math.sqrt(squares * otherSquares);
        sums[at] += Math.abs((lengths > 0 ? product / lengths : 0) - exact);
      });
      pairs++;
    }
  }
  return sums.map((sum) => (pairs ? sum / pairs : 0));
}
